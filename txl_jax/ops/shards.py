"""How the operators meet a mesh of devices that they do not know.

While a program is traced, `parallel/` binds logical axes to axes of its mesh.
Where nothing is bound, nothing is divided, and both functions do nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axis = Literal['rows', 'heads', 'vocabulary'] | None
_BOUND = contextvars.ContextVar('bound', default=None)


@contextlib.contextmanager
def bind(mesh: Mesh, **axes: tuple[str, ...]) -> Iterator[None]:
  """Binds logical axes to those of a mesh for what is traced inside.

  Args:
    mesh: the devices, its axes of type Auto.
    **axes: for each logical axis the mesh axes it is divided over.
  """
  token = _BOUND.set((mesh, axes))
  try:
    yield
  finally:
    _BOUND.reset(token)


def constrain(x: jax.Array, *logical: Axis) -> jax.Array:
  """Says over which logical axes the axes of an array are divided."""
  bound = _BOUND.get()
  if bound is None:
    return x
  mesh, axes = bound
  spec = PartitionSpec(*(axes.get(name) for name in logical))
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def per_row_shard(
  function: Callable, row_axes: tuple[int | None, ...], out_axis: int
) -> Callable:
  """A function that each group of rows computes for itself.

  For what XLA cannot divide by itself, such as a sort of all tokens. The other
  mesh axes stay XLA's, and gradients of what all rows share are summed.

  Args:
    function: of as many pytrees as there are row axes, to one array.
    row_axes: the axis of rows in every leaf of each argument; None = shared.
    out_axis: the axis of rows in the result.
  """
  bound = _BOUND.get()
  if bound is None or not bound[1].get('rows'):
    return function
  mesh, axes = bound

  def spec(axis: int | None) -> Any:
    lead = (None,) * (axis or 0)
    return (
      PartitionSpec() if axis is None else PartitionSpec(*lead, axes['rows'])
    )

  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=tuple(map(spec, row_axes)),
    out_specs=spec(out_axis),
    axis_names=set(axes['rows']),
  )
