"""Our own export format: one folder, readable without any framework.

`model.safetensors` holds the parameters (names joined by dots), `config.json`
the fields of ModelConfig, `vocabulary.json` the vocabulary.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from txl_jax.config import ModelConfig
from txl_jax.conversion import dataclass_from_dict
from txl_jax.data.vocabulary import Vocabulary, vocabulary_from_json
from txl_jax.errors import InputError
from txl_jax.model.functional import init_params

# Instead of a vocabulary.
UNKNOWN = '{"kind": "unknown"}'


def save_pretrained(
  directory: str | os.PathLike,
  config: ModelConfig,
  params: dict,
  vocabulary: Vocabulary | None,
) -> None:
  """Writes a model in our export format.

  Args:
    directory: made if it does not exist.
    config: the model.
    params: its parameters.
    vocabulary: what its token ids mean; None = unknown.
  """
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(params, sep='.')
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  fields = json.dumps(dataclasses.asdict(config), indent=2)
  (folder / 'config.json').write_text(fields + '\n')
  text = UNKNOWN if vocabulary is None else vocabulary.to_json()
  (folder / 'vocabulary.json').write_text(text + '\n')


def load_pretrained(
  directory: str | os.PathLike,
) -> tuple[ModelConfig, dict, Vocabulary | None]:
  """Reads a model in our export format.

  Args:
    directory: with `model.safetensors`, `config.json` and `vocabulary.json`.

  Returns:
    Configuration, parameters and vocabulary, None if that is unknown.

  Raises:
    InputError: naming the file, and the field or array that does not fit.
  """
  folder = pathlib.Path(directory)
  config = _read_config(folder / 'config.json')
  vocabulary = _read_vocabulary(folder / 'vocabulary.json')
  path = folder / 'model.safetensors'
  try:
    arrays = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f'cannot read {path}: {error}') from error
  _check_arrays(path, config, arrays)
  params = traverse_util.unflatten_dict(arrays, sep='.')
  return config, jax.tree.map(jax.numpy.asarray, params), vocabulary


def is_export(folder: pathlib.Path) -> bool:
  """Whether a folder holds a model in our export format."""
  names = ('model.safetensors', 'config.json', 'vocabulary.json')
  return all((folder / name).is_file() for name in names)


def _read(path: pathlib.Path) -> str:
  try:
    return path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


def _read_config(path: pathlib.Path) -> ModelConfig:
  try:
    fields = json.loads(_read(path))
  except ValueError as error:
    raise InputError(f'{path} is not JSON: {error}') from error
  try:
    return dataclass_from_dict(ModelConfig, fields, str(path))
  except InputError as error:
    raise InputError(f'{path}: {error}') from error


def _read_vocabulary(path: pathlib.Path) -> Vocabulary | None:
  text = _read(path)
  if text.strip() == UNKNOWN:
    return None
  try:
    return vocabulary_from_json(text)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error


def _check_arrays(
  path: pathlib.Path, config: ModelConfig, arrays: dict[str, Any]
) -> None:
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  expected = traverse_util.flatten_dict(shapes, sep='.')
  for name in sorted(expected.keys() ^ arrays.keys()):
    problem = 'lacks' if name in expected else 'has the unknown'
    raise InputError(f'{path} {problem} array {name}')
  for name, array in arrays.items():
    if array.shape != expected[name].shape:
      raise InputError(
        f'{path}: {name} must have shape {expected[name].shape}, found '
        f'{array.shape}'
      )
