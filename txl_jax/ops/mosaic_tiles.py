"""Tiles of 64 rows, the size of a matrix product, in kernels for Hopper."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.experimental.mosaic.gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from txl_jax.ops.hopper import KERNEL_TILE as TILE

# How tiles lie in shared memory for products.
TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


# Only the barriers that a kernel asks for: the automatic ones are many.
PARAMS = plgpu.CompilerParams(
  approx_math=True,
  lowering_semantics=plgpu.LoweringSemantics.Lane,
  unsafe_no_auto_barriers=True,
)


class Block:
  """A block of a kernel.

  What is known beforehand, arrays on the device, memory of the block.
  """

  def __init__(
    self, static: Any, device: SimpleNamespace, shared: SimpleNamespace
  ):
    self._static, self._device, self._shared = static, device, shared

  @classmethod
  def body(cls, static: Any, names: Sequence[str]) -> Callable[..., None]:
    """The body of the kernel, whose arrays have these names."""

    def body(*arrays: Any, **shared: Any) -> None:
      device = SimpleNamespace(**dict(zip(names, arrays, strict=True)))
      cls(static, device, SimpleNamespace(**shared)).run()

    return body

  def run(self) -> None:
    """Everything."""
    raise NotImplementedError


class HeadBlock(Block):
  """A block of a row and head."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    self._head, self._row = lax.axis_index('head'), lax.axis_index('row')


def shared_tile(width: int, *lead: int) -> Any:
  """Room for bfloat16 tiles that products can read."""
  return shared_array(*lead, TILE, width)


def shared_array(*shape: int) -> Any:
  """The same for arrays whose last axes are multiples of 64."""
  return plgpu.SMEM(shape, jnp.bfloat16, transforms=TRANSFORMS)


def fetch(pairs: Sequence[tuple[Any, Any]], barriers: Any) -> None:
  """Copies arrays on the device to shared memory, and waits for all."""
  for n, (source, target) in enumerate(pairs):
    plgpu.copy_gmem_to_smem(source, target, barriers.at[n])
  for n in range(len(pairs)):
    plgpu.barrier_wait(barriers.at[n])


def meet() -> None:
  """Waits until all threads of a block are here.

  What they wrote to shared memory is seen by all, but not by copies and
  products: for these there is `commit_smem`.
  """

  @plgpu.inline_mgpu()
  def wait(ctx: Any) -> None:
    del ctx
    mgpu.warpgroup_barrier()

  wait()


def load(source: Any) -> jax.Array:
  """A tile from shared memory."""
  return plgpu.load(source, layout=plgpu.Layout.WGMMA)


def load_rows(source: Any) -> jax.Array:
  """A number for each row, from shared memory."""
  return plgpu.load(source, layout=plgpu.Layout.WGMMA.reduce(1))


def in_each_row(source: Any) -> jax.Array:
  """A tile whose rows are all one that is in shared memory."""
  row = plgpu.load(source, layout=plgpu.Layout.WGMMA.reduce(0))
  return lax.broadcast_in_dim(row, (TILE, *source.shape), [1])


def places(first: Any) -> jax.Array:
  """The number of each row, counted from `first`; int32 [64]."""
  layout = plgpu.Layout.WGMMA.reduce(1)
  return plgpu.broadcasted_iota(jnp.int32, (TILE,), 0, layout=layout) + first


def in_registers(dtype: Any) -> plgpu.ShapeDtypeStruct:
  """The type of a tile in registers, what inline code returns."""
  return plgpu.ShapeDtypeStruct((TILE, TILE), dtype, layout=plgpu.Layout.WGMMA)


def zeros(like: Any, dtype: Any = jnp.float32) -> jax.Array:
  """Of the shape of a tile, in registers."""
  return plgpu.layout_cast(jnp.zeros(like.shape, dtype), plgpu.Layout.WGMMA)


def rows_of(value: float) -> jax.Array:
  """A number for each row, float32 in registers."""
  full = jnp.full((TILE,), value, jnp.float32)
  return plgpu.layout_cast(full, plgpu.Layout.WGMMA.reduce(1))


class Turned(NamedTuple):
  """A tile in shared memory that stands for its transpose."""

  tile: Any


def with_products(
  pairs: Sequence[tuple[Any, Any]], then: Callable[..., Any]
) -> Any:
  """What `then` makes of left right^T for each pair of tiles.

  The products are computed one after the other while `then` runs. It is given a
  function that waits for the n-th and returns it, to be asked for in order.
  """

  def run(*accs: Any) -> Any:
    for acc, (left, right) in zip(accs, pairs):
      plgpu.wgmma(acc, left, right.T)

    def result(n: int) -> jax.Array:
      later = len(pairs) - 1 - n
      return plgpu.wgmma_accumulator_load(accs[n], wait_n=later)

    return then(result)

  square = plgpu.ACC((TILE, TILE), jnp.float32)
  return pl.run_scoped(run, *[square] * len(pairs))


def add_products(*terms: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, ...]:
  """acc + left right for each (acc, left, right).

  Args:
    *terms: `left` is in registers, or in shared memory; `right` is there.
  """

  def run(accs: Any) -> None:
    for acc, (_, left, right) in zip(accs, terms):
      left = left.tile.T if isinstance(left, Turned) else left
      plgpu.wgmma(acc, left, right)

  return pl.run_state(run)(tuple(plgpu.ACC.init(acc) for acc, *_ in terms))


def visible(first: Any, end: Any, key: Any) -> jax.Array:
  """Which keys the queries see, [64, 64], a row for each query.

  Args:
    first: int32 in shared memory, the first key that each query sees.
    end: the key at the place of the first query.
    key: the first key of the tile.
  """
  at = columns(key)
  first = lax.broadcast_in_dim(load_rows(first), at.shape, [0])
  return (at <= rows(end)) & (at >= first)


def visible_by_key(first: jax.Array, end: Any, key: Any) -> jax.Array:
  """The same, a row for each key; `first` is in all rows of a tile."""
  at = rows(key)
  return (at <= columns(end)) & (at >= first)


def rows(first: Any) -> jax.Array:
  """The number of each row, counted from `first`; int32 [64, 64]."""
  return _numbers(first, 0)


def columns(first: Any) -> jax.Array:
  """The number of each column, counted from `first`; int32 [64, 64]."""
  return _numbers(first, 1)


def _numbers(first: Any, axis: int) -> jax.Array:
  # What a thread adds to the number of its first element is a constant.
  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WG_SPLAT,),
    return_type=in_registers(jnp.int32),
  )
  def count(ctx: Any, first: Any) -> Any:
    del ctx
    number = ir.IntegerType.get_signless(32)
    pair = ir.VectorType.get((2,), number)
    start = arith.addi(thread_place()[axis], first.registers.flat[0])

    def values(*step: int) -> Any:
      further = (step[axis] + n * axis for n in range(2))
      found = [arith.addi(start, arith.constant(number, n)) for n in further]
      return vector.from_elements(pair, found)

    return fragments(values, is_signed=True)

  return count(jnp.asarray(first, jnp.int32))


def thread_place() -> tuple[Any, Any]:
  """Row and column of the first element that a thread holds of a tile."""
  number = ir.IntegerType.get_signless(32)
  place = next(iter(mgpu.WGMMA_LAYOUT.thread_idxs((TILE, TILE))))
  return tuple(arith.index_cast(number, x) for x in place)


def steps() -> list[tuple[int, int]]:
  """Rows and columns from there to the pair in each of its registers."""
  layout = mgpu.WGMMA_LAYOUT
  strides = layout.tiling.tile_strides((TILE, 1))
  places = np.ndindex(layout.registers_shape((TILE, TILE)))
  return [
    divmod(sum(n * stride for n, stride in zip(place, strides)), TILE)
    for place in places
  ]


def fragments(values: Callable[[int, int], Any], is_signed: Any = None) -> Any:
  """A tile in registers, from a function of the `steps` to each pair."""
  layout = mgpu.WGMMA_LAYOUT
  registers = np.empty(layout.registers_shape((TILE, TILE)), dtype=object)
  registers.flat[:] = [values(*step) for step in steps()]
  return mgpu.FragmentedArray(
    _registers=registers, _layout=layout, _is_signed=is_signed
  )
