"""The mesh of devices, and how arrays lie on it."""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from txl_jax.config import MeshConfig
from txl_jax.errors import InputError
from txl_jax.model.cache import AnyCache, Cache
from txl_jax.ops import shards
from txl_jax.ops.cached_attention import Slots
from txl_jax.parallel import partition

AXES = ('data', 'fsdp', 'tensor')
DATA_PARALLEL = MeshConfig()
ROWS = ('data', 'fsdp')  # the axes that rows are divided over together


def make_mesh(
  config: MeshConfig = DATA_PARALLEL,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """The grid of devices, its axes `data`, `fsdp` and `tensor`.

  Args:
    config: their sizes.
    devices: None = all, of all processes.

  Raises:
    InputError: if the sizes do not make up the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dataclasses.asdict(config)
  given = {name: size for name, size in sizes.items() if size != -1}
  product, n_devices = math.prod(given.values()), len(devices)
  filled = len(given) < len(sizes)
  if n_devices % product if filled else n_devices != product:
    names = ' x '.join(f'config.mesh.{name}' for name in given)
    found = ' x '.join(map(str, given.values()))
    expected = 'a divisor of' if filled else 'exactly'
    raise InputError(
      f'{names} is {found}, expected {expected} the number of devices, '
      f'{n_devices}'
    )
  shape = [given.get(name, n_devices // product) for name in AXES]
  # Linen's layers do not work on axes of the Explicit type, the default.
  types = (AxisType.Auto,) * len(AXES)
  slices = collections.Counter(getattr(d, 'slice_index', 0) for d in devices)
  try:
    grid = _grid(shape, devices, slices)
  except NotImplementedError:
    # An axis has to take a part of one of those that the chips are wired in.
    grid = _grid(shape, devices, slices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=types)


def _grid(
  shape: list[int],
  devices: Sequence[Any],
  slices: dict[int, int],
  **options: bool,
) -> np.ndarray:
  """Devices in the order in which they are connected.

  The network is fastest within a slice: a pod slice, a host. Outer axes go from
  slice to slice, inner ones stay within if they can: data parallelism sends
  least.
  """
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(shape, devices, **options)
  if len(set(slices.values())) > 1:
    found = ', '.join(map(str, slices.values()))
    raise InputError(f'slices must have equally many devices, found {found}')
  outer, left = [], len(slices)
  for size in shape:
    outer.append(math.gcd(size, left))
    left //= outer[-1]
  inner = [size // parts for size, parts in zip(shape, outer)]
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **options)


def sharded(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
  """Within it, what is traced is divided over the mesh (ops/shards.py).

  Only outside of `jax.jit`: around its call, or around `lower`.
  """
  return shards.bind(mesh, rows=ROWS, heads=('tensor',), vocabulary=('tensor',))


def row_groups(mesh: Mesh) -> int:
  """Into how many parts rows are divided."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def check_rows(mesh: Mesh, batch_size: int, field: str) -> None:
  """Raises an InputError if the rows do not divide among the devices."""
  groups = row_groups(mesh)
  if batch_size % groups:
    what = 'devices'
    if groups != mesh.size:
      what = 'groups of devices (config.mesh.data x config.mesh.fsdp)'
    raise InputError(
      f'{field} is {batch_size}, expected a multiple of the {groups} {what}'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def row_axis(leaf: Any) -> int:
  """The axis of rows in a leaf of a memory or batch: 1, or 0 of a vector."""
  return min(leaf.ndim - 1, 1)


def by_rows(mesh: Mesh, tree: Any) -> Any:
  """Shardings of a memory or batch, which is divided by rows alone."""
  return jax.tree.map(
    lambda leaf: NamedSharding(
      mesh, PartitionSpec(*(None,) * row_axis(leaf), ROWS)
    ),
    tree,
  )


def cache_shardings(mesh: Mesh, cache: AnyCache) -> AnyCache:
  """Shardings of a cache, which is divided by rows; all else is replicated."""
  if not isinstance(cache, Cache):
    return by_rows(mesh, cache)
  whole = jax.tree.map(lambda _: replicated(mesh), cache)
  return whole.replace(
    slots=tuple(
      places._replace(**by_rows(mesh, _keys_and_values(slots)))
      for places, slots in zip(whole.slots, cache.slots)
    ),
    valid_B=by_rows(mesh, cache.valid_B),
  )


def _keys_and_values(slots: Slots) -> dict:
  return {name: getattr(slots, name) for name in ('keys_HBLC', 'values_HBLC')}


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Shardings of a train state.

  Parameters are divided as the table says (partition.py), and so is each leaf
  that has the shape of a parameter and a path that ends with its path:
  moments, averages. The memory is divided by rows; all else is replicated.

  Args:
    mesh: from `make_mesh`.
    state: any dataclass of arrays, or of their shapes, with the fields `params`
      and `memory`.
  """
  specs = partition.param_specs(mesh, state.params)
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  known = {
    (partition.path_name(path), leaf.shape): spec
    for (path, leaf), spec in zip(leaves, jax.tree.leaves(specs), strict=True)
  }

  def sharding(path: tuple, leaf: Any) -> NamedSharding:
    for start in range(len(path)):
      spec = known.get((partition.path_name(path[start:]), leaf.shape))
      if spec is not None:
        return NamedSharding(mesh, spec)
    return replicated(mesh)

  whole = jax.tree_util.tree_map_with_path(sharding, state)
  return whole.replace(memory=by_rows(mesh, state.memory))
