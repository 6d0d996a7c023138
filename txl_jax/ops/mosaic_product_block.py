"""A block of a kernel for Hopper: 128 rows and columns of a product.

One group of warps multiplies, and then does to the sums in its registers what
the kernel is for, while another block on the same multiprocessor multiplies.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_products as products
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import KERNEL_SIDE as SIDE
from txl_jax.ops.mosaic_tiles import TILE

# Steps whose operands are fetched at once, each 64 of the axis that is summed
# over: as many as leave room for a second block.
STAGES = 3
# First rows and columns of the tiles that the result of a block consists of.
PLACES = [(row, column) for row in (0, TILE) for column in (0, TILE)]
# Rows of blocks that go through the columns together, as they share operands.
_BAND = 8


def product_kernel(
  body: Any, n_blocks: tuple[int, int], out_type: Any, room: dict, copies: int
) -> Any:
  """A kernel of so many blocks along rows and columns.

  Args:
    body: of a subclass of `Block`, whose static data have n_blocks and n_steps.
    n_blocks: how many.
    out_type: of the results, one of them `out` unless `_send` has others.
    room: shared memory, of which `left` and `right` are made by `operands`.
    copies: that fetch the operands of a step.
  """
  n_rows, n_columns = n_blocks
  loaded = plgpu.Barrier(num_arrivals=copies, num_barriers=STAGES)
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=dict(loaded=loaded, **room),
    grid=(n_rows * n_columns,),
    grid_names=('block',),
    compiler_params=tiles.PARAMS,
  )


def room_for_sums() -> dict:
  """Room for `Block._write_sums`."""
  return dict(
    sums=plgpu.SMEM((SIDE,), jnp.float32),
    of_warps=plgpu.SMEM((4 * TILE,), jnp.float32),
  )


def operands(*shape: int) -> Any:
  """Room for an operand of the steps that are fetched at once."""
  return tiles.shared_array(STAGES, *shape)


def tile_at(first: Any) -> Any:
  """The 64 numbers from the first on."""
  return pl.ds(first, TILE)


class Block(tiles.Block):
  """128 rows and columns of a product."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    at, n_blocks = lax.axis_index('block'), self._static.n_blocks
    row, column = plgpu.planar_snake(at, n_blocks, 0, _BAND)
    self._rows, self._columns = row * SIDE, column * SIDE

  def run(self) -> None:
    """Everything."""
    for n in range(STAGES):
      self._fetch(n)
    self._finish(
      products.sum_of_products((SIDE, SIDE), self._n_steps, self._step)
    )
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  @property
  def _n_steps(self) -> int:
    return self._static.n_steps

  def _step(self, n: Any, multiply: Any) -> None:
    """Multiplies the operands of a step, while the one before it ends."""
    stage = lax.rem(n, STAGES)
    plgpu.barrier_wait(self._shared.loaded.at[stage])
    multiply(self._shared.left.at[stage], self._right(stage))
    # All are done with what the step before has read.
    tiles.meet()
    pl.when(n > 0)(lambda: self._fetch(n + STAGES - 1))

  def _fetch(self, n: Any) -> None:
    """Begins to fetch the operands of a step, if there is one."""
    raise NotImplementedError

  def _right(self, stage: Any) -> Any:
    """The right operand, in shared memory."""
    return self._shared.right.at[stage]

  def _finish(self, product: jax.Array) -> None:
    """Writes what is made of the product."""
    raise NotImplementedError

  def _copy(self, n: Any, left: Sequence[Any], right: Any) -> None:
    """Begins to copy the operands of a step, the left one in so many parts."""
    stage, height = lax.rem(n, STAGES), SIDE // len(left)
    loaded = self._shared.loaded.at[stage]
    for i, part in enumerate(left):
      target = self._shared.left.at[stage, pl.ds(i * height, height)]
      plgpu.copy_gmem_to_smem(part, target, loaded)
    plgpu.copy_gmem_to_smem(right, self._shared.right.at[stage], loaded)

  def _write_sums(self, of_columns: Sequence[jax.Array]) -> None:
    """The sums of the columns of tiles side by side, to the array `sums`.

    With room for them, `sums`, and for what each of four warps adds up.
    """
    shared = self._shared
    for n, x in enumerate(of_columns):
      shared.sums[tile_at(n * TILE)] = products.column_sums(x, shared.of_warps)
    plgpu.commit_smem()
    place = lax.div(self._rows, SIDE), pl.ds(self._columns, SIDE)
    plgpu.copy_smem_to_gmem(shared.sums, self._device.sums.at[place])

  def _write(self, x: jax.Array, room: Any, row: int, column: int) -> None:
    """A tile of the result, by way of shared memory."""
    room[...] = x.astype(jnp.bfloat16)
    plgpu.commit_smem()
    self._send(room, row, column)

  def _send(self, room: Any, row: int, column: int) -> None:
    """Begins to copy a tile of the result to the device."""
    place = tile_at(self._rows + row), tile_at(self._columns + column)
    plgpu.copy_smem_to_gmem(room, self._device.out.at[place])


class TurnedBlock(Block):
  """One whose right operand has a row for each column of the product."""

  def _fetch(self, n: Any) -> None:
    device, along = self._device, tile_at(n * TILE)

    @pl.when(n < self._n_steps)
    def _():
      left = device.left.at[pl.ds(self._rows, SIDE), along]
      right = device.right.at[pl.ds(self._columns, SIDE), along]
      self._copy(n, [left], right)

  def _right(self, stage: Any) -> Any:
    return self._shared.right.at[stage].T
