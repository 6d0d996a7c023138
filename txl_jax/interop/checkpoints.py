"""Reads any checkpoint that it recognises, and writes those that can be."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from txl_jax.errors import InputError
from txl_jax.interop import hugging_face, nvidia, official, pretrained
from txl_jax.interop import tensorflow_files as tensorflow
from txl_jax.interop.imported import Imported, refitted
from txl_jax.interop.safe_files import load_safe
from txl_jax.interop.torch_files import load_torch
from txl_jax.interop.vocabularies import find_vocabulary, read_vocabulary
from txl_jax.model.memory import Memory

# Files of a folder, the first found is read.
FILES = (nvidia.BEST, nvidia.LAST, official.MODEL)
# What comes of looking for things that are not there.
NOT_THAT_FORM = (AttributeError, LookupError, TypeError, ValueError)
# Of an export, beside the model.
RUN = 'run.safetensors'
FORMATS = ('export', 'official', 'nvidia', 'hugging_face')


def read_checkpoint(
  path: str | os.PathLike,
  given: Mapping[str, Any] | None = None,
  vocabulary: str | os.PathLike | None = None,
) -> Imported:
  """Reads a model of any implementation.

  Args:
    path: a folder, or a file in it.
    given: fields of ModelConfig: those that the checkpoint does not tell, or
      others that replace what it tells.
    vocabulary: a file with the vocabulary; None = what lies beside the model.

  Raises:
    InputError: if the format is not recognised, or naming what is missing, left
      over, of another size or shape, or cannot be derived.
  """
  path, given = pathlib.Path(path).expanduser(), dict(given or {})
  if not path.exists() and not tensorflow.find(path):
    raise InputError(f'there is no file or folder {path}')
  try:
    result = _read(path, given)
  except InputError as error:
    raise InputError(_once(path, str(error))) from error
  except (OSError, RecursionError, *NOT_THAT_FORM) as error:
    problem = f'{type(error).__name__}: {error}'
    raise InputError(
      f'{path} is no checkpoint of the form that its names suggest: {problem}'
    ) from error
  return _with_vocabulary(result, path, vocabulary)


def write_checkpoint(
  form: str, directory: str | os.PathLike, imported: Imported
) -> None:
  """Writes a model in a format of `FORMATS`.

  Raises:
    InputError: naming the field that the format cannot say.
  """
  folder = pathlib.Path(directory)
  try:
    _write(form, folder, imported)
  except OSError as error:
    raise InputError(f'cannot write {folder}: {error}') from error


def _write(form: str, folder: pathlib.Path, found: Imported) -> None:
  config, params, vocabulary = found.config, found.params, found.vocabulary
  if form == 'export':
    pretrained.save_pretrained(folder, config, params, vocabulary)
    _write_run(folder / RUN, found)
  elif form == 'official':
    official.write_official(folder, config, params)
  elif form == 'nvidia':
    more = found.memory, found.step
    nvidia.write_nvidia(folder, config, params, vocabulary, *more)
  elif form == 'hugging_face':
    hugging_face.write_hugging_face(folder, config, params, vocabulary)
  else:
    choices = ', '.join(FORMATS)
    raise InputError(f'the format must be one of {choices}, found {form!r}')


def _read(path: pathlib.Path, given: dict[str, Any]) -> Imported:
  folder = path if path.is_dir() else path.parent
  if prefix := tensorflow.find(path):
    return tensorflow.read_tensorflow(prefix, given)
  if path == folder or path.name in hugging_face.NAMES:
    if hugging_face.is_hugging_face(folder):
      return hugging_face.read_hugging_face(folder, given)
    if pretrained.is_export(folder):
      return _export(folder, given)
  if path == folder:
    path = _file(folder)
  loaded = load_torch(path)
  if nvidia.is_nvidia(loaded):
    return nvidia.read_nvidia(loaded, given)
  if official.is_official(loaded):
    return official.read_official(loaded, folder, given)
  raise InputError('it holds no Transformer-XL of a known implementation')


def _export(folder: pathlib.Path, given: dict[str, Any]) -> Imported:
  config, params, vocabulary = pretrained.load_pretrained(folder)
  config = refitted(config, params, given)
  more = _read_run(folder / RUN)
  return Imported('export', config, params, vocabulary, *more)


def _write_run(path: pathlib.Path, found: Imported) -> None:
  """Memory and step of the training run, where the checkpoint had them."""
  arrays = {}
  if found.step is not None:
    arrays['step'] = np.array(found.step, np.int64)
  if found.memory is not None:
    fields = dataclasses.asdict(found.memory)
    arrays |= {f'memory.{n}': np.asarray(a) for n, a in fields.items()}
  if arrays:
    safetensors.numpy.save_file(arrays, path)


def _read_run(path: pathlib.Path) -> tuple[Memory | None, int | None]:
  if not path.is_file():
    return None, None
  arrays = {name: np.asarray(a) for name, a in load_safe(path).items()}
  step = arrays.pop('step', None)
  fields = {
    n.removeprefix('memory.'): jnp.asarray(a) for n, a in arrays.items()
  }
  memory = Memory(**fields) if fields else None
  return memory, None if step is None else int(step)


def _file(folder: pathlib.Path) -> pathlib.Path:
  found = [folder / name for name in FILES if (folder / name).is_file()]
  if not found:
    raise InputError(
      'no checkpoint of a known implementation is in it; name the file itself'
    )
  return found[0]


def _with_vocabulary(
  imported: Imported,
  path: pathlib.Path,
  vocabulary: str | os.PathLike | None,
) -> Imported:
  if vocabulary is not None:
    found = read_vocabulary(pathlib.Path(vocabulary).expanduser())
  elif imported.vocabulary is not None or imported.form == 'export':
    found = imported.vocabulary
  else:
    found = find_vocabulary(path if path.is_dir() else path.parent)
  size = imported.config.vocab_size
  if found is not None and found.size != size:
    raise InputError(
      f'the vocabulary has {found.size:,} symbols, expected the '
      f'{size:,} of the model'
    )
  return dataclasses.replace(imported, vocabulary=found)


def _once(path: pathlib.Path, message: str) -> str:
  return message if str(path) in message else f'{path}: {message}'
