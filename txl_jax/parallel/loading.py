"""Rows from the memory of each process to the devices of all."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from txl_jax.parallel import mesh as mesh_lib


def local_rows(mesh: Mesh, batch_size: int) -> slice:
  """The rows of a batch that this process has to load.

  From the first to the last that one of its devices holds. Where several
  processes hold the same rows, each of them loads these.

  Args:
    mesh: from `make_mesh`.
    batch_size: rows B, which divide among the devices (`check_rows`).
  """
  row_B = jax.ShapeDtypeStruct((batch_size,), np.int32)
  held = mesh_lib.by_rows(mesh, row_B).addressable_devices_indices_map(
    row_B.shape
  )
  bounds = [index[0].indices(batch_size) for index in held.values()]
  return slice(
    min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds)
  )


def place(mesh: Mesh, tree: Any, batch_size: int) -> Any:
  """A batch or memory on the devices, divided by rows.

  Args:
    mesh: from `make_mesh`.
    tree: NumPy arrays of the rows `local_rows(mesh, batch_size)`.
    batch_size: rows B of all processes.

  Returns:
    The tree of arrays of all rows.
  """
  first = local_rows(mesh, batch_size).start

  def global_array(leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
    axis = mesh_lib.row_axis(leaf)
    shape = (*leaf.shape[:axis], batch_size, *leaf.shape[axis + 1 :])

    def rows(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[axis].indices(batch_size)
      here = slice(start - first, stop - first)
      return leaf[(*index[:axis], here, *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, sharding, rows)

  return jax.tree.map(global_array, tree, mesh_lib.by_rows(mesh, tree))


def place_all(mesh: Mesh, tree: Any, batch_size: int) -> Any:
  """The same from NumPy arrays of all rows, which each process has."""
  rows = local_rows(mesh, batch_size)

  def local(leaf: np.ndarray) -> np.ndarray:
    return leaf[(slice(None),) * mesh_lib.row_axis(leaf) + (rows,)]

  return place(mesh, jax.tree.map(local, tree), batch_size)
