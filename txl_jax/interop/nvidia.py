"""Checkpoints of NVIDIA's PyTorch code (DeepLearningExamples).

`checkpoint_best.pt` and `checkpoint_last.pt` hold a dict: the model's arguments
(`model_config`), its state dict (`model_state`), the vocabulary, the step and
the memory of the training run.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.interop import state_dict
from txl_jax.interop.imported import Imported, with_fields
from txl_jax.interop.layout import Entry, read_params, renamed, write_arrays
from txl_jax.interop.options import config_of, options_of
from txl_jax.interop.torch_writing import save_torch
from txl_jax.interop.unpickler import stand_in
from txl_jax.interop.vocabularies import from_symbols, vocabulary_state
from txl_jax.model.memory import Memory

BEST, LAST = 'checkpoint_best.pt', 'checkpoint_last.pt'
# Keys that `same_length` shows beyond `mem_len`.
EXTRA = 1


def is_nvidia(loaded: Any) -> bool:
  """Whether a file of PyTorch holds a checkpoint of NVIDIA's code."""
  return isinstance(loaded, dict) and 'model_state' in loaded


def read_nvidia(loaded: dict, given: Mapping[str, Any]) -> Imported:
  """The model, vocabulary, memory and step of a checkpoint.

  Args:
    loaded: what the file holds.
    given: fields of ModelConfig that the user sets.

  Raises:
    InputError: naming what is missing, left over or of another shape.
  """
  options = loaded.get('model_config')
  if not isinstance(options, dict):
    raise InputError('the checkpoint lacks model_config')
  if options.get('attn_type', 0) != 0:
    raise InputError(
      f"NVIDIA's attn_type must be 0, found {options['attn_type']}"
    )
  arrays = loaded['model_state']
  # Left over from training on several devices.
  arrays = {name.removeprefix('module.'): a for name, a in arrays.items()}
  config = with_fields(config_of(arrays, options, EXTRA), given)
  ignored = [state_dict.FREQUENCIES]
  return Imported(
    'nvidia',
    config,
    read_params(config, _entries(config), arrays, ignored),
    _vocabulary(loaded.get('vocab')),
    _memory(config, loaded.get('memory')),
    loaded.get('train_step'),
  )


def write_nvidia(
  folder: pathlib.Path,
  config: ModelConfig,
  params: dict,
  vocabulary: Vocabulary | None = None,
  memory: Memory | None = None,
  step: int | None = None,
) -> None:
  """Writes `checkpoint_best.pt`, for evaluation and generation there.

  The state of the optimizer is not in it, so training begins with a new one.

  Raises:
    InputError: naming the field that NVIDIA's code has no argument for.
  """
  if config.position_encoding != 'relative':
    raise InputError(
      f'config.model.position_encoding is {config.position_encoding!r}, this '
      "format can say only 'relative'"
    )
  options = {**options_of(config, EXTRA), 'dtype': None}
  arrays = write_arrays(_entries(config), params)
  arrays[state_dict.FREQUENCIES] = state_dict.frequencies(config)
  checkpoint = {
    'model_config': options,
    'model_state': arrays,
    'args': _arguments(options),
    'train_step': step or 0,
    'vocab': None,
    'memory': None,
  }
  if state := vocabulary_state(vocabulary):
    # The class that NVIDIA's scripts expect.
    checkpoint['vocab'] = stand_in('utils.vocabulary', 'Vocab')()
    checkpoint['vocab'].state = state
  if memory is not None:
    checkpoint['memory'] = [[_valid(memory).swapaxes(1, 2)]]
  folder.mkdir(parents=True, exist_ok=True)
  save_torch(folder / BEST, checkpoint)


def _entries(config: ModelConfig) -> list[Entry]:
  """Those of the paper's code, with other names for the softmax."""
  result, tied = [], set()
  for entry in state_dict.entries(config):
    name = entry.name
    if entry.same_as:
      # No second name for what is tied, but one for every projection.
      tied.add(name)
      continue
    name = re.sub(
      r'^crit.out_layers.(\d+).bias', r'crit.out_layers_biases.\1', name
    )
    name = re.sub(
      r'^crit.out_layers.(\d+).weight', r'crit.out_layers_weights.\1', name
    )
    result.append(renamed(entry, name))
  for entry in list(result):
    if entry.name.startswith('word_emb.emb_projs.'):
      alias = entry.name.replace('word_emb.emb_projs', 'crit.shared_out_projs')
      result.append(renamed(entry, alias, same_as=entry.name))
  return result


def _memory(config: ModelConfig, chunks: Any) -> Memory | None:
  """The memory of all rows: those of a device are next to each other.

  Args:
    config: the model.
    chunks: by part of the batch and device, arrays [N, M, B, D].
  """
  chunks = [chunk for chunk in chunks or [] if chunk is not None]
  chunks = [c if isinstance(c, (list, tuple)) else [c] for c in chunks]
  parts = [part for device in zip(*chunks) for part in device]
  if not parts or any(part is None for part in parts):
    return None
  hidden_NBMD = np.concatenate([np.asarray(part) for part in parts], axis=2)
  hidden_NBMD = hidden_NBMD.swapaxes(1, 2).astype(np.float32)
  N, B, M, D = hidden_NBMD.shape
  length = config.memory_length
  if (N, D) != (config.n_layers, config.d_model) or M > length:
    raise InputError(
      f'the memory has shape {(N, M, B, D)}, expected '
      f'{(config.n_layers, length, B, config.d_model)}'
    )
  widths = [(0, 0), (0, 0), (length - M, 0), (0, 0)]
  hidden_NBMD = jnp.asarray(np.pad(hidden_NBMD, widths))
  return Memory(hidden_NBMD, jnp.full(B, M, jnp.int32))


def _valid(memory: Memory) -> np.ndarray:
  """Hidden states [N, B, M, D] of the valid positions."""
  valid = np.unique(memory.valid_B)
  if len(valid) != 1:
    raise InputError("the memory's rows hold text of different lengths")
  hidden_NBMD = np.asarray(memory.hidden_NBMD)
  return np.ascontiguousarray(hidden_NBMD[:, :, memory.length - valid[0] :])


def _vocabulary(vocab: Any) -> Vocabulary | None:
  symbols = getattr(vocab, 'attribute', lambda name: None)('idx2sym')
  if not isinstance(symbols, list):
    return None
  return from_symbols(symbols, bool(vocab.attribute('lower_case')))


def _arguments(options: dict[str, Any]) -> Any:
  namespace = stand_in('argparse', 'Namespace')()
  namespace.state = dict(options)
  return namespace
