"""Arrays of a safetensors file, read one by one when they are asked for."""

import dataclasses
import pathlib
from typing import Any

import safetensors

from txl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SafeArray:
  """An array in a file; `numpy.asarray` reads it.

  Attributes:
    path: the file.
    name: of the array.
    shape: its shape.
  """

  path: pathlib.Path
  name: str
  shape: tuple[int, ...]

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    with safetensors.safe_open(self.path, framework='numpy') as file:
      array = file.get_tensor(self.name)
    return array if dtype is None else array.astype(dtype, copy=False)


def load_safe(path: pathlib.Path) -> dict[str, SafeArray]:
  """The arrays of a file by name.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f'cannot read {path}: {error}') from error
  return {name: SafeArray(path, name, tuple(s)) for name, s in shapes.items()}
