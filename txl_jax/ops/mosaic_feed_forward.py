"""Products of the feed-forward network on Hopper, with what follows them.

XLA writes a product, and then reads it to add the bias, apply ReLU and drop
out, or to apply their gradient. Here a block does that to what it holds in
registers, while another one on the same multiprocessor multiplies.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_dropout
from txl_jax.ops import mosaic_products as products
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import KERNEL_SIDE as SIDE
from txl_jax.ops.mosaic_tiles import TILE

# Steps whose operands are fetched at once, each 64 of the axis that is summed
# over: as many as leave room for a second block.
_STAGES = 3
# Rows of blocks that go through the columns together, as they share operands.
_BAND = 8
# First rows and columns of the tiles that the result of a block consists of.
_PLACES = [(row, column) for row in (0, TILE) for column in (0, TILE)]
# Arrays on the device: what each kernel reads, and what it writes.
_FORWARD = ('left', 'right', 'bias', 'words', 'out')
_BACKWARD = ('left', 'right', 'inner', 'out', 'sums')


def activated(
  x_RD: jax.Array,
  w_DF: jax.Array,
  bias_F: jax.Array,
  words_R: jax.Array,
  rate: float,
) -> jax.Array:
  """dropout(relu(x w + b)), bfloat16 [R, F].

  Args:
    x_RD: bfloat16; R a multiple of 128, D of 64.
    w_DF: bfloat16; F a multiple of 128.
    bias_F: float32.
    words_R: of dropout, for each row, from `dropout.row_words`.
    rate: of dropout.
  """
  (R, D), F = x_RD.shape, w_DF.shape[1]
  return _forward(R, D, F, rate)(x_RD, w_DF, bias_F, words_R)


def gradient(
  dout_RD: jax.Array, w_FD: jax.Array, inner_RF: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
  """The gradient of x w + b, given that of dropout(relu(x w + b)) w'.

  Args:
    dout_RD: bfloat16; R a multiple of 128, D of 64.
    w_FD: w', bfloat16; F a multiple of 128.
    inner_RF: from `activated`.
    rate: of dropout.

  Returns:
    The gradient, bfloat16 [R, F], and sums of its rows, float32 [R / 128, F].
  """
  (R, D), F = dout_RD.shape, len(w_FD)
  return _backward(R, D, F, rate)(dout_RD, w_FD, inner_RF)


class _Static(NamedTuple):
  """What is known when a kernel is compiled."""

  n_blocks: tuple[int, int]
  n_steps: int
  rate: float


@functools.cache
def _forward(R: int, D: int, F: int, rate: float) -> Any:
  out_type = jax.ShapeDtypeStruct((R, F), jnp.bfloat16)
  room = dict(left=_operands(SIDE, TILE), right=_operands(TILE, SIDE))
  static = _Static((R // SIDE, F // SIDE), D // TILE, rate)
  return _kernel(_Forward.body(static, _FORWARD), static, out_type, room)


@functools.cache
def _backward(R: int, D: int, F: int, rate: float) -> Any:
  out_type = [
    jax.ShapeDtypeStruct((R, F), jnp.bfloat16),
    jax.ShapeDtypeStruct((R // SIDE, F), jnp.float32),
  ]
  room = dict(left=_operands(SIDE, TILE), right=_operands(SIDE, TILE))
  room |= dict(sums=plgpu.SMEM((SIDE,), jnp.float32))
  # What each of four warps adds up.
  room |= dict(of_warps=plgpu.SMEM((4 * TILE,), jnp.float32))
  static = _Static((R // SIDE, F // SIDE), D // TILE, rate)
  return _kernel(_Backward.body(static, _BACKWARD), static, out_type, room)


def _kernel(body: Any, static: _Static, out_type: Any, room: dict) -> Any:
  n_rows, n_columns = static.n_blocks
  loaded = plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES)
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=dict(loaded=loaded, **room),
    grid=(n_rows * n_columns,),
    grid_names=('block',),
    compiler_params=tiles.PARAMS,
  )


def _operands(*shape: int) -> Any:
  return tiles.shared_array(_STAGES, *shape)


class _Block(tiles.Block):
  """A block of either kernel: 128 rows and columns of a product."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    at, n_blocks = lax.axis_index('block'), self._static.n_blocks
    row, column = plgpu.planar_snake(at, n_blocks, 0, _BAND)
    self._rows, self._columns = row * SIDE, column * SIDE

  def run(self) -> None:
    """Everything."""
    for n in range(_STAGES):
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
    stage = lax.rem(n, _STAGES)
    plgpu.barrier_wait(self._shared.loaded.at[stage])
    multiply(self._shared.left.at[stage], self._right(stage))
    # All are done with what the step before has read.
    tiles.meet()
    pl.when(n > 0)(lambda: self._fetch(n + _STAGES - 1))

  def _fetch(self, n: Any) -> None:
    """Begins to fetch the operands of a step, if there is one."""
    raise NotImplementedError

  def _right(self, stage: Any) -> Any:
    """The right operand, in shared memory."""
    raise NotImplementedError

  def _finish(self, product: jax.Array) -> None:
    """Writes what is made of the product."""
    raise NotImplementedError

  def _copy(self, n: Any, left: Any, right: Any) -> None:
    stage = lax.rem(n, _STAGES)
    loaded = self._shared.loaded.at[stage]
    plgpu.copy_gmem_to_smem(left, self._shared.left.at[stage], loaded)
    plgpu.copy_gmem_to_smem(right, self._shared.right.at[stage], loaded)

  def _write(self, x: jax.Array, room: Any, row: int, column: int) -> None:
    """A tile of the result, by way of shared memory."""
    room[...] = x.astype(jnp.bfloat16)
    plgpu.commit_smem()
    place = _tile(self._rows + row), _tile(self._columns + column)
    plgpu.copy_smem_to_gmem(room, self._device.out.at[place])


class _Forward(_Block):
  """Adds the bias, applies ReLU and drops out."""

  def _fetch(self, n: Any) -> None:
    device, along = self._device, _tile(n * TILE)

    @pl.when(n < self._n_steps)
    def _():
      left = device.left.at[pl.ds(self._rows, SIDE), along]
      right = device.right.at[along, pl.ds(self._columns, SIDE)]
      self._copy(n, left, right)

  def _right(self, stage: Any) -> Any:
    return self._shared.right.at[stage]

  def _finish(self, product: jax.Array) -> None:
    device, rate = self._device, self._static.rate
    # All are done with the operands: there is room for the result.
    tiles.meet()
    for row, column in _PLACES:
      x = product[row : row + TILE, column : column + TILE]
      first = self._columns + column
      x += products.along(device.bias, first, 1)
      x = jnp.maximum(x, 0) * (1 / (1 - rate))
      if rate:
        words = products.along(device.words, self._rows + row, 0)
        x = jnp.where(mosaic_dropout.hidden_kept(words, first, rate), x, 0.0)
      room = self._shared.left.at[row // TILE, _tile(column)]
      self._write(x, room, row, column)


class _Backward(_Block):
  """Applies the gradient of dropout and ReLU, and adds up rows."""

  def _fetch(self, n: Any) -> None:
    device, along = self._device, _tile(n * TILE)
    rows, columns = (pl.ds(x, SIDE) for x in (self._rows, self._columns))

    @pl.when(n < self._n_steps)
    def _():
      self._copy(
        n, device.left.at[rows, along], device.right.at[columns, along]
      )

    # What the product is masked by comes in the place of a step's operands.
    @pl.when(n == self._n_steps)
    def _():
      halves = (_tile(self._columns + column) for column in (0, TILE))
      self._copy(n, *(device.inner.at[rows, half] for half in halves))

  def _right(self, stage: Any) -> Any:
    return self._shared.right.at[stage].T

  def _finish(self, product: jax.Array) -> None:
    shared, scale = self._shared, 1 / (1 - self._static.rate)
    stage = self._n_steps % _STAGES
    plgpu.barrier_wait(shared.loaded.at[stage])
    sums = [None, None]
    for row, column in _PLACES:
      half = (shared.left, shared.right)[column // TILE].at[stage, _tile(row)]
      x = product[row : row + TILE, column : column + TILE] * scale
      x = jnp.where(tiles.load(half).astype(jnp.float32) > 0, x, 0.0)
      tiles.meet()
      self._write(x, half, row, column)
      above = sums[column // TILE]
      sums[column // TILE] = x if above is None else above + x
    for n, x in enumerate(sums):
      shared.sums[_tile(n * TILE)] = products.column_sums(x, shared.of_warps)
    plgpu.commit_smem()
    place = lax.div(self._rows, SIDE), pl.ds(self._columns, SIDE)
    plgpu.copy_smem_to_gmem(shared.sums, self._device.sums.at[place])


def _tile(first: Any) -> Any:
  return pl.ds(first, TILE)
