"""Where each array of another implementation lies among our parameters.

A layout is a list of entries, one for each array of a checkpoint. The same
list reads and writes, so that what one direction does the other undoes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.interop.torch_files import Tensor
from txl_jax.model.functional import init_params


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array of a checkpoint, and what it is here.

  Attributes:
    name: in the checkpoint.
    shape: in the checkpoint.
    paths: of our parameters; several are stacked on the first axis, after
      `split` and `axes`.
    layer: which of the stacked layers it is; None = none of them.
    rows: of our parameter, if it is only some of its rows.
    reverse: the axis that runs the other way there.
    split: the shape whose axes `axes` puts in order.
    axes: as of `numpy.transpose`, from theirs to ours.
    same_as: the entry that these are another name of; '' = of none.
  """

  name: str
  shape: tuple[int, ...]
  paths: tuple[str, ...]
  layer: int | None = None
  rows: tuple[int, int] | None = None
  reverse: int | None = None
  split: tuple[int, ...] | None = None
  axes: tuple[int, ...] | None = None
  same_as: str = ''

  def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
    """What goes to each of the paths."""
    if self.reverse is not None:
      array = np.flip(array, self.reverse)
    array = array.reshape(self.split or self.shape)
    array = array.transpose(self.axes or range(array.ndim))
    return list(array) if len(self.paths) > 1 else [array]

  def to_theirs(self, arrays: list[np.ndarray]) -> np.ndarray:
    """The inverse of `to_ours`."""
    array = np.stack(arrays) if len(self.paths) > 1 else arrays[0]
    if self.axes:
      array = array.transpose(np.argsort(self.axes))
    array = array.reshape(self.shape)
    if self.reverse is not None:
      array = np.flip(array, self.reverse)
    return np.ascontiguousarray(array)

  def place(self, ours: Mapping[str, np.ndarray], path: str) -> np.ndarray:
    """The part of one of our arrays that belongs to the entry."""
    array = ours[path] if self.layer is None else ours[path][self.layer]
    return array if self.rows is None else array[slice(*self.rows)]


def renamed(entry: Entry, name: str, **changes: Any) -> Entry:
  """The entry under another name."""
  return dataclasses.replace(entry, name=name, **changes)


def read_params(
  config: ModelConfig,
  entries: Iterable[Entry],
  arrays: Mapping[str, Any],
  ignored: Iterable[str] = (),
) -> dict:
  """Our parameters, in float32, from the arrays of a checkpoint.

  One array at a time is in memory beside the result.

  Args:
    config: the model.
    entries: the layout of the checkpoint.
    arrays: name -> anything that `numpy.asarray` takes.
    ignored: names that follow from the configuration.

  Raises:
    InputError: naming the array that is missing, left over, of another shape,
      or different from the one it is tied to.
  """
  entries = {entry.name: entry for entry in entries}
  names = _names(entries, arrays)
  left = {*arrays} - {*ignored} - {n for same in names.values() for n in same}
  if left:
    raise InputError(
      f'the configuration leaves no place for the arrays '
      f'{", ".join(sorted(left))}'
    )
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  flat = traverse_util.flatten_dict(shapes, sep='.')
  ours = {path: np.empty(s.shape, np.float32) for path, s in flat.items()}
  for name, same in names.items():
    entry, values = entries[name], np.asarray(arrays[same[0]])
    for path, part in zip(entry.paths, entry.to_ours(values)):
      entry.place(ours, path)[...] = part
    for other in same[1:]:
      _check_tied(arrays, same[0], other)
  # One after the other, since each may be copied.
  params = {path: jnp.asarray(ours.pop(path)) for path in list(ours)}
  return traverse_util.unflatten_dict(params, sep='.')


def write_arrays(entries: Iterable[Entry], params: dict) -> dict:
  """The arrays of a checkpoint, in float32; tied ones are one object."""
  flat = traverse_util.flatten_dict(params, sep='.')
  ours = {path: np.asarray(array) for path, array in flat.items()}
  result: dict[str, np.ndarray] = {}
  for entry in entries:
    parts = [entry.place(ours, path) for path in entry.paths]
    if entry.same_as:
      result[entry.name] = result[entry.same_as]
    else:
      result[entry.name] = entry.to_theirs(parts)
  return result


def are_tied(first: Any, second: Any) -> bool:
  """Whether two arrays are one in the file, or have the same numbers."""
  if isinstance(first, Tensor) and isinstance(second, Tensor):
    if first.storage is second.storage and first.offset == second.offset:
      return first.shape == second.shape
  return tuple(first.shape) == tuple(second.shape) and np.array_equal(
    np.asarray(first), np.asarray(second)
  )


def _names(
  entries: dict[str, Entry], arrays: Mapping[str, Any]
) -> dict[str, list[str]]:
  """For each entry that is no other name: the names found, shapes checked."""
  result = {name: [name] for name, e in entries.items() if not e.same_as}
  for name, entry in entries.items():
    if entry.same_as:
      result[entry.same_as].append(name)
  for name, same in result.items():
    same[:] = [n for n in same if n in arrays]
    if not same:
      raise InputError(f'the arrays lack {name}')
    for n in same:
      found = tuple(arrays[n].shape)
      if found != entries[n].shape:
        raise InputError(
          f'{n} must have shape {entries[n].shape}, found {found}'
        )
  return result


def _check_tied(arrays: Mapping[str, Any], name: str, other: str) -> None:
  if not are_tied(arrays[name], arrays[other]):
    raise InputError(
      f'{other} differs from {name}, which the options tie it to'
    )
