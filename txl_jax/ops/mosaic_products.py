"""Products of several tiles in kernels for Hopper, and vectors beside them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops.mosaic_tiles import TILE


def sum_of_products(
  shape: tuple[int, int], n_steps: int, step: Callable[[Any, Any], None]
) -> jax.Array:
  """What `step(n, multiply)` adds up for each n, [*shape].

  Args:
    shape: multiples of 64.
    n_steps: how often.
    step: calls `multiply(left, right)` once, on arrays in shared memory. When
      that returns, what earlier steps have multiplied is no longer read.
  """

  def run(acc: Any) -> jax.Array:
    def multiply(left: Any, right: Any) -> None:
      plgpu.wgmma(acc, left, right)
      plgpu.wgmma_wait(1)

    lax.fori_loop(0, n_steps, lambda n, _: step(n, multiply), None)
    return acc[...]

  return pl.run_scoped(run, plgpu.ACC(shape, jnp.float32))


def along(source: Any, first: Any, axis: int) -> jax.Array:
  """A tile [64, 64] that is the same along the other axis.

  Args:
    source: numbers on the device, [n].
    first: the first of the 64 that are read.
    axis: of the tile, along which they lie.
  """
  layout = plgpu.Layout.WGMMA.reduce(1 - axis)
  line = source.at[pl.ds(first, TILE)]
  line = plgpu.load(line, layout=layout, optimized=False)
  return lax.broadcast_in_dim(line, (TILE, TILE), [axis])


def column_sums(x: jax.Array, of_warps: Any) -> jax.Array:
  """The sum of the rows of a tile [64, n]: [n].

  Args:
    x: float32.
    of_warps: room in shared memory for 4 n numbers.
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA, plgpu.RefType()),
    return_type=plgpu.ShapeDtypeStruct(
      x.shape[1:], jnp.float32, layout=plgpu.Layout.WGMMA.reduce(0)
    ),
  )
  def add_up(ctx: Any, x: Any, of_warps: Any) -> Any:
    del ctx
    return x.reduce('add', 0, scratch=of_warps)

  return add_up(x, of_warps)
