"""The mesh of devices, and how arrays lie on it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from txl_jax.errors import InputError


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of one axis, `data`, over the given or all local devices."""
  devices = jax.local_devices() if devices is None else devices
  # Linen's layers do not work on axes of the Explicit type, the default.
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def check_rows(mesh: Mesh, batch_size: int, field: str) -> None:
  """Raises an InputError if the rows do not divide among the devices."""
  if batch_size % mesh.size:
    raise InputError(
      f'{field} is {batch_size}, expected a multiple of the {mesh.size} devices'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, tree: Any) -> Any:
  """Shardings of a memory or batch: rows are axis 1, or 0 of a vector."""

  def sharding(leaf: Any) -> NamedSharding:
    axis = (
      PartitionSpec('data') if leaf.ndim == 1 else PartitionSpec(None, 'data')
    )
    return NamedSharding(mesh, axis)

  return jax.tree.map(sharding, tree)


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Shardings of a train state: the memory by rows, the rest replicated."""
  whole = jax.tree.map(lambda leaf: replicated(mesh), state)
  return whole.replace(memory=by_rows(mesh, state.memory))
