"""How the operators meet a mesh of devices that they do not know.

While a program is traced, `parallel/` binds logical axes to axes of its mesh.
Where nothing is bound, nothing is divided, and both functions do nothing.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

Axis = Literal['rows', 'heads', 'vocabulary'] | None
# The mesh itself is JAX's context mesh, by which `jax.jit` tells programs that
# it has traced apart; inside `per_row_shard` it has fewer axes left to divide.
_BOUND = contextvars.ContextVar('bound', default=None)


@contextlib.contextmanager
def bind(mesh: Mesh, **axes: tuple[str, ...]) -> Iterator[None]:
  """Binds logical axes to those of a mesh for what is traced inside.

  Only outside of `jax.jit`: around its call, or around `lower`.

  Args:
    mesh: the devices, its axes of type Auto.
    **axes: for each logical axis the mesh axes it is divided over.
  """
  with jax.set_mesh(mesh), _bound(axes):
    yield


@contextlib.contextmanager
def _bound(axes: dict[str, tuple[str, ...]]) -> Iterator[None]:
  token = _BOUND.set(axes)
  try:
    yield
  finally:
    _BOUND.reset(token)


def constrain(x: jax.Array, *logical: Axis) -> jax.Array:
  """Says over which logical axes the axes of an array are divided.

  An axis of the array that cannot be divided evenly stays whole.
  """
  if not _bound_axes():
    return x
  over = (
    None if size % _parts(name) else _bound_axes().get(name)
    for size, name in zip(x.shape, logical, strict=True)
  )
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*over))


def per_row_shard(
  function: Callable, row_axes: tuple[int | None, ...], out_axis: int
) -> Callable:
  """A function that each group of rows computes for itself.

  For what XLA cannot divide by itself, such as a sort of all tokens. The other
  mesh axes stay XLA's, and gradients of what all rows share are summed, in
  float32 or wider. Rows that cannot be divided evenly stay together.

  Args:
    function: of as many pytrees as there are row axes, to one array. It must
      not draw random numbers: each group of rows would draw the same.
    row_axes: the axis of rows in every leaf of each argument; None = shared.
    out_axis: the axis of rows in the result.
  """
  parts = _parts('rows')
  if parts == 1:
    return function

  def whole_or_divided(*arguments: Any) -> jax.Array:
    for axis, argument in zip(row_axes, arguments, strict=True):
      leaves = [] if axis is None else jax.tree.leaves(argument)
      if any(leaf.shape[axis] % parts for leaf in leaves):
        return function(*arguments)
    return _divided(function, row_axes, out_axis, arguments)

  return whole_or_divided


def _divided(
  function: Callable,
  row_axes: tuple[int | None, ...],
  out_axis: int,
  arguments: tuple,
) -> jax.Array:
  axes = dict(_bound_axes())
  rows = axes.pop('rows')

  def spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec(*(None,) * (axis or 0), None if axis is None else rows)

  def of_one_group(*parts: Any) -> jax.Array:
    with _bound(axes):
      return function(*jax.tree.map(_as_type_of, arguments, parts))

  run = jax.shard_map(
    of_one_group,
    in_specs=tuple(map(spec, row_axes)),
    out_specs=spec(out_axis),
    axis_names=set(rows),
    # So that what is shared and what is not may meet in a loop's state.
    check_vma=False,
  )
  # Gradients of what is shared are summed in the type in which it comes in.
  return run(
    *(
      jax.tree.map(_widened, argument) if axis is None else argument
      for axis, argument in zip(row_axes, arguments)
    )
  )


def _widened(x: jax.Array) -> jax.Array:
  if jnp.issubdtype(x.dtype, jnp.floating):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return x


def _as_type_of(original: jax.Array, x: jax.Array) -> jax.Array:
  return x if x.dtype == original.dtype else x.astype(original.dtype)


def _bound_axes() -> dict[str, tuple[str, ...]]:
  return _BOUND.get() or {}


def _parts(name: Axis) -> int:
  """Into how many parts a logical axis is divided."""
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes[axis] for axis in _bound_axes().get(name, ()))
