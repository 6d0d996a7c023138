"""How the operators meet a mesh of devices that they do not know.

While a program is traced, `parallel/` binds logical axes to axes of its mesh.
Where nothing is bound, nothing is divided, and all of this does nothing.
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
# it has traced apart; inside `per_shard` it has fewer axes left to divide.
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
    None if size % n_shards(name) else _bound_axes().get(name)
    for size, name in zip(x.shape, logical, strict=True)
  )
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*over))


def is_divided(name: Axis) -> bool:
  """Whether a logical axis is divided over devices."""
  return n_shards(name) > 1


def n_shards(name: Axis) -> int:
  """Into how many parts a logical axis is divided."""
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes[axis] for axis in _bound_axes().get(name, ()))


def copies(x: jax.Array, name: Axis) -> jax.Array:
  """A copy for each shard along a logical axis, [G, ...], divided over them.

  What is computed of them stays with the shards, in the backward pass too:
  gradients are summed here, in the type of the array.
  """
  if not is_divided(name):
    return x[None]
  whole = jnp.broadcast_to(x, (n_shards(name), *x.shape))
  free = (PartitionSpec.UNCONSTRAINED,) * x.ndim
  spec = PartitionSpec(_bound_axes()[name], *free)
  return jax.lax.with_sharding_constraint(whole, spec)


def per_row_shard(
  function: Callable, row_axes: tuple[int | None, ...], out_axis: int
) -> Callable:
  """`per_shard` over the rows alone.

  Args:
    function: of as many pytrees as there are row axes, to one array.
    row_axes: the axis of rows in every leaf of each argument; None = shared.
    out_axis: the axis of rows in the result.
  """

  def logical(axis: int | None) -> tuple[Axis, ...]:
    return () if axis is None else (*(None,) * axis, 'rows')

  return per_shard(function, tuple(map(logical, row_axes)), logical(out_axis))


def per_shard(
  function: Callable,
  in_axes: tuple[tuple[Axis, ...], ...],
  out_axes: tuple[Axis, ...],
  *,
  whole_mesh: bool = False,
) -> Callable:
  """A function that each shard along the named axes computes for itself.

  For what XLA cannot divide by itself, such as a kernel, or a sort of all
  tokens. Mesh axes that are not named stay XLA's, and gradients of what several
  shards have in common are summed, in float32 or wider. What cannot be divided
  evenly stays together.

  Args:
    function: of as many pytrees as there are in_axes, to a pytree. It must not
      draw random numbers: each shard would draw the same.
    in_axes: the first logical axes of every leaf of each argument.
    out_axes: those of every leaf of the result.
    whole_mesh: leave no axis of the mesh to XLA, for a kernel that it cannot
      divide: along the others all devices compute the same.
  """
  if not _bound_axes():
    return function

  def divided(*arguments: Any) -> jax.Array:
    names = {name for name in sum(in_axes, ()) if n_shards(name) > 1}
    for logical, argument in zip(in_axes, arguments, strict=True):
      for leaf in jax.tree.leaves(argument):
        sizes = zip(leaf.shape, logical)
        names -= {name for size, name in sizes if size % n_shards(name)}
    axes = {axis for name in names for axis in _bound_axes()[name]}
    if whole_mesh:
      axes = set(jax.sharding.get_abstract_mesh().axis_names)
    if not axes:
      return function(*arguments)
    return _divided(function, in_axes, out_axes, names, axes, arguments)

  return divided


def _divided(
  function: Callable,
  in_axes: tuple[tuple[Axis, ...], ...],
  out_axes: tuple[Axis, ...],
  names: set[Axis],
  ours: set[str],
  arguments: tuple,
) -> jax.Array:
  bound = _bound_axes()
  left = {name: axes for name, axes in bound.items() if not ours & set(axes)}

  def spec(logical: tuple[Axis, ...]) -> PartitionSpec:
    return PartitionSpec(*(bound[x] if x in names else None for x in logical))

  def of_one_shard(*parts: Any) -> jax.Array:
    with _bound(left):
      return function(*jax.tree.map(_as_type_of, arguments, parts))

  run = jax.shard_map(
    of_one_shard,
    in_specs=tuple(map(spec, in_axes)),
    out_specs=spec(out_axes),
    axis_names=ours,
    # So that what is shared and what is not may meet in a loop's state.
    check_vma=False,
  )
  # Gradients of what is shared are summed in the type in which it comes in.
  return run(
    *(
      argument if names <= set(logical) else jax.tree.map(_widened, argument)
      for logical, argument in zip(in_axes, arguments)
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
