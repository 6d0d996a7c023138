"""Checkpoints of Hugging Face's `TransfoXLLMHeadModel`.

A folder with `config.json` and `model.safetensors` or `pytorch_model.bin`. Its
memory starts with attended zeros, and its softmax has the clusters in order.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import safetensors.numpy

from txl_jax.config import ModelConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.interop import state_dict
from txl_jax.interop.imported import Imported, read_json, with_fields
from txl_jax.interop.layout import Entry, read_params, renamed, write_arrays
from txl_jax.interop.options import config_of, options_of
from txl_jax.interop.safe_files import load_safe
from txl_jax.interop.torch_files import load_torch
from txl_jax.interop.torch_writing import save_pickle
from txl_jax.interop.vocabularies import vocabulary_state

CONFIG = 'config.json'
TENSORS, PICKLED = 'model.safetensors', 'pytorch_model.bin'
VOCABULARY = 'vocab.pkl'
NAMES = (CONFIG, TENSORS, PICKLED)
# What the configuration's class assumes for what the file leaves out.
DEFAULTS = {
  'vocab_size': 267735,
  'cutoffs': [20000, 40000, 200000],
  'd_model': 1024,
  'd_embed': 1024,
  'n_head': 16,
  'd_head': 64,
  'd_inner': 4096,
  'div_val': 4,
  'pre_lnorm': False,
  'n_layer': 18,
  'mem_len': 1600,
  'clamp_len': 1000,
  'same_length': True,
  'proj_share_all_but_first': True,
  'attn_type': 0,
  'dropout': 0.1,
  'dropatt': 0.0,
  'untie_r': True,
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
OWN = 'vocab_size untie_r layer_norm_epsilon tie_word_embeddings'.split()
# Fields of ModelConfig that this format can say only one value of.
FIXED = {
  'square_projections': True,
  'memory_start': 'zeros',
  'position_encoding': 'relative',
}


def is_hugging_face(folder: pathlib.Path) -> bool:
  """Whether a folder's `config.json` is that of a Hugging Face model."""
  config = read_json(folder / CONFIG)
  # Old files do not name their model.
  return config.get('model_type') == 'transfo-xl' or 'untie_r' in config


def read_hugging_face(
  folder: pathlib.Path, given: Mapping[str, Any]
) -> Imported:
  """The model of a folder.

  Args:
    folder: with the configuration and the arrays.
    given: fields of ModelConfig that the user sets.

  Raises:
    InputError: naming what is missing, left over or of another shape.
  """
  config = with_fields(_config(read_json(folder / CONFIG)), given)
  arrays = _arrays(folder)
  prefixed = any(name.startswith('transformer.') for name in arrays)
  if not prefixed:
    raise InputError(f'{folder} holds no language model: no transformer.*')
  ignored = [f'transformer.{state_dict.FREQUENCIES}']
  params = read_params(config, _entries(config), arrays, ignored)
  return Imported('hugging_face', config, params)


def write_hugging_face(
  folder: pathlib.Path,
  config: ModelConfig,
  params: dict,
  vocabulary: Vocabulary | None = None,
) -> None:
  """Writes `model.safetensors`, `config.json` and `vocab.pkl`.

  Raises:
    InputError: naming the field that this format has no name for.
  """
  values = options_of(config, fixed=FIXED)
  tied, others = values.pop('tie_projs'), ('tgt_len', 'ext_len', 'n_token')
  for name in others:
    values.pop(name)
  values |= {
    'architectures': ['TransfoXLLMHeadModel'],
    'model_type': 'transfo-xl',
    'vocab_size': config.vocab_size,
    'untie_r': config.untie_biases,
    'layer_norm_epsilon': config.layer_norm_epsilon,
    'tie_word_embeddings': values['tie_weight'],
    'proj_share_all_but_first': any(tied),
    'tie_projs': tied,
    'adaptive': True,
  }
  # As Hugging Face itself, which ties the softmax again when it loads.
  entries = [
    e
    for e in _entries(config)
    if not (e.same_as and e.name.startswith('crit.'))
  ]
  arrays = write_arrays(entries, params)
  name = f'transformer.{state_dict.FREQUENCIES}'
  arrays[name] = state_dict.frequencies(config)
  folder.mkdir(parents=True, exist_ok=True)
  metadata = {'format': 'pt'}
  safetensors.numpy.save_file(arrays, folder / TENSORS, metadata)
  (folder / CONFIG).write_text(json.dumps(values, indent=2) + '\n')
  if state := vocabulary_state(vocabulary):
    save_pickle(folder / VOCABULARY, state)


def _config(found: dict[str, Any]) -> ModelConfig:
  values = {**DEFAULTS, **found}
  if values['attn_type'] != 0:
    raise InputError(
      f"Hugging Face's attn_type must be 0, found {values['attn_type']}"
    )
  n_tails, share = len(values['cutoffs']), values['proj_share_all_but_first']
  options = {name: v for name, v in values.items() if name not in OWN}
  options['n_token'] = values['vocab_size']
  options['tie_weight'] = values['tie_word_embeddings']
  options.setdefault('tie_projs', [False] + [bool(share)] * n_tails)
  return with_fields(
    config_of({}, options),
    {
      'untie_biases': values['untie_r'],
      'layer_norm_epsilon': float(values['layer_norm_epsilon']),
      'memory_start': 'zeros',
    },
  )


def _arrays(folder: pathlib.Path) -> Mapping[str, Any]:
  if (folder / TENSORS).is_file():
    return load_safe(folder / TENSORS)
  if not (folder / PICKLED).is_file():
    raise InputError(f'{folder} has neither {TENSORS} nor {PICKLED}')
  loaded = load_torch(folder / PICKLED)
  if not isinstance(loaded, dict):
    raise InputError(f'{folder / PICKLED} holds no state dict')
  return loaded


def _entries(config: ModelConfig) -> list[Entry]:
  """Those of the paper's code, the clusters in order."""
  result = []
  for entry in state_dict.entries(config):
    same = entry.same_as and f'transformer.{entry.same_as}'
    if entry.name.startswith('crit.cluster'):
      result.append(renamed(entry, entry.name, reverse=None))
    elif entry.name.startswith('crit.'):
      result.append(renamed(entry, entry.name, same_as=same))
    else:
      result.append(renamed(entry, f'transformer.{entry.name}'))
  shared = [e for e in result if e.name.endswith(('.r_w_bias', '.r_r_bias'))]
  if not config.untie_biases:
    # Every layer lists the biases that all of them share.
    for n in range(config.n_layers):
      for e in shared:
        bias = e.name.removeprefix('transformer.')
        alias = f'transformer.layers.{n}.dec_attn.{bias}'
        result.append(renamed(e, alias, same_as=e.name))
  return result
