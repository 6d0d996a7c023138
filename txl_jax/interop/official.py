"""Checkpoints of the paper's PyTorch code (kimiyoung/transformer-xl)."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.interop import state_dict
from txl_jax.interop.imported import Imported, read_json, with_fields
from txl_jax.interop.layout import read_params, write_arrays
from txl_jax.interop.options import complete, config_of, options_of
from txl_jax.interop.torch_writing import save_torch
from txl_jax.interop.unpickler import StandIn

MODEL, OPTIONS = 'model.pt', 'config.json'


def from_official(
  arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[ModelConfig, dict]:
  """Configuration and parameters from the official PyTorch names.

  Args:
    arrays: name in the state dict -> array.
    options: the official argument names (`n_layer`, `d_inner`, `tie_projs`,
      `clamp_len`, ...); those that do not shape the model are ignored.

  Returns:
    The configuration and the parameters, in float32.

  Raises:
    InputError: naming the array or the option that is missing, left over, of
      another shape than expected, or not supported.
  """
  config = config_of(arrays, options)
  return config, _read(config, arrays)


def _read(config: ModelConfig, arrays: Mapping[str, Any]) -> dict:
  ignored = [state_dict.FREQUENCIES]
  return read_params(config, state_dict.entries(config), arrays, ignored)


def is_official(loaded: Any) -> bool:
  """Whether a file of PyTorch holds the official model or its state dict."""
  if isinstance(loaded, StandIn):
    return _model(loaded) is not None
  return isinstance(loaded, dict) and 'word_emb.emb_layers.0.weight' in loaded


def read_official(
  loaded: Any, folder: pathlib.Path, given: Mapping[str, Any]
) -> Imported:
  """The model of `model.pt`: the whole module, or only its state dict.

  Args:
    loaded: what the file holds.
    folder: where it lies; a `config.json` there has official options.
    given: fields of ModelConfig that the user sets.

  Raises:
    InputError: naming what is missing, left over or of another shape.
  """
  known = read_json(folder / OPTIONS)
  if isinstance(loaded, StandIn):
    module = _model(loaded)
    known = {**_attributes(module), **known}
    loaded = _flatten(module)
  options = complete(loaded, known, given)
  config = with_fields(config_of(loaded, options), given)
  return Imported('official', config, _read(config, loaded))


def write_official(
  folder: pathlib.Path, config: ModelConfig, params: dict
) -> None:
  """Writes `model.pt`, a state dict, and the options in `config.json`.

  Raises:
    InputError: naming the field that the paper's code has no argument for.
  """
  options = options_of(config)
  arrays = write_arrays(state_dict.entries(config), params)
  if config.position_encoding in ('relative', 'sinusoid'):
    arrays[state_dict.FREQUENCIES] = state_dict.frequencies(config)
  folder.mkdir(parents=True, exist_ok=True)
  save_torch(folder / MODEL, arrays)
  (folder / OPTIONS).write_text(json.dumps(options, indent=2) + '\n')


def _model(loaded: StandIn) -> StandIn | None:
  """The language model, inside of what runs it on several devices or not."""
  if loaded.name in ('DataParallel', 'BalancedDataParallel'):
    loaded = _parts(loaded, '_modules').get('module')
  is_model = getattr(loaded, 'name', None) == 'MemTransformerLM'
  return loaded if is_model else None


def _parts(module: Any, kind: str) -> dict:
  """Parameters, buffers or modules inside of a module."""
  parts = module.attribute(kind) if isinstance(module, StandIn) else None
  if not isinstance(parts, dict):
    raise InputError(f'the pickled module has no {kind} in one of its parts')
  return {name: part for name, part in parts.items() if part is not None}


def _flatten(module: Any, prefix: str = '') -> dict[str, Any]:
  """The state dict of a module that was pickled whole."""
  result = {}
  for kind in ('_parameters', '_buffers'):
    for name, tensor in _parts(module, kind).items():
      result[f'{prefix}{name}'] = tensor
  for name, part in _parts(module, '_modules').items():
    result |= _flatten(part, f'{prefix}{name}.')
  return result


def _attributes(module: StandIn) -> dict[str, Any]:
  """Official options that a pickled module remembers."""

  def inside(*path: str) -> StandIn:
    part = module
    for name in path:
      part = _parts(part, '_modules').get(name)
    return part

  names = 'n_token n_head d_head mem_len same_length clamp_len ext_len tgt_len'
  result = {name: module.attribute(name) for name in names.split()}
  attention = inside('layers', '0', 'dec_attn')
  result['cutoffs'] = inside('word_emb').attribute('cutoffs')[:-1]
  result['pre_lnorm'] = attention.attribute('pre_lnorm')
  result['dropout'] = inside('drop').attribute('p')
  result['dropatt'] = inside('layers', '0', 'dec_attn', 'dropatt').attribute(
    'p'
  )
  return {name: v for name, v in result.items() if v is not None}
