"""Files that commands write, each all of it or nothing."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

from txl_jax.errors import InputError


def check_file(path: str, option: str, suffix: str = '') -> pathlib.Path:
  """The path of a file that is to be written after long work.

  Args:
    path: of the file.
    option: that names it, for error messages.
    suffix: that it must end with.

  Raises:
    InputError: if it cannot be written, or ends otherwise.
  """
  file = pathlib.Path(path)
  if not file.name or file.is_dir() or not file.name.endswith(suffix):
    expected = f'a file name that ends with {suffix}' if suffix else 'a name'
    raise InputError(f'{option} must be {expected}, found {path!r}')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'cannot make {file.parent}: {error.strerror}') from error
  if not os.access(file.parent, os.W_OK):
    raise InputError(f'{option} is {path!r}, but {file.parent} is read-only')
  return file


def write_file(path: pathlib.Path, write: Callable[[BinaryIO], None]) -> None:
  """Calls `write` with a file that then takes the place of `path`."""
  draft = path.with_name(path.name + '.part')
  with draft.open('wb') as file:
    write(file)
  os.replace(draft, path)
