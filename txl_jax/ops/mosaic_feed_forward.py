"""Products of the feed-forward network on Hopper, with what follows them.

XLA writes a product, and then reads it to add the bias, apply ReLU and drop
out, or to apply their gradient. Here a block does that before it writes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_dropout
from txl_jax.ops import mosaic_products as products
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import KERNEL_SIDE as SIDE
from txl_jax.ops.mosaic_product_block import (
  PLACES,
  STAGES,
  Block,
  TurnedBlock,
  operands,
  product_kernel,
  room_for_sums,
  tile_at,
)
from txl_jax.ops.mosaic_tiles import TILE

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
  room = dict(left=operands(SIDE, TILE), right=operands(TILE, SIDE))
  static = _Static((R // SIDE, F // SIDE), D // TILE, rate)
  body = _Forward.body(static, _FORWARD)
  return product_kernel(body, static.n_blocks, out_type, room, 2)


@functools.cache
def _backward(R: int, D: int, F: int, rate: float) -> Any:
  out_type = [
    jax.ShapeDtypeStruct((R, F), jnp.bfloat16),
    jax.ShapeDtypeStruct((R // SIDE, F), jnp.float32),
  ]
  room = dict(left=operands(SIDE, TILE), right=operands(SIDE, TILE))
  room |= room_for_sums()
  static = _Static((R // SIDE, F // SIDE), D // TILE, rate)
  body = _Backward.body(static, _BACKWARD)
  return product_kernel(body, static.n_blocks, out_type, room, 2)


class _Forward(Block):
  """Adds the bias, applies ReLU and drops out."""

  def _fetch(self, n: Any) -> None:
    device, along = self._device, tile_at(n * TILE)

    @pl.when(n < self._n_steps)
    def _():
      left = device.left.at[pl.ds(self._rows, SIDE), along]
      right = device.right.at[along, pl.ds(self._columns, SIDE)]
      self._copy(n, [left], right)

  def _finish(self, product: jax.Array) -> None:
    device, rate = self._device, self._static.rate
    # All are done with the operands: there is room for the result.
    tiles.meet()
    for row, column in PLACES:
      x = product[row : row + TILE, column : column + TILE]
      first = self._columns + column
      x += products.along(device.bias, first, 1)
      x = jnp.maximum(x, 0) * (1 / (1 - rate))
      if rate:
        words = products.along(device.words, self._rows + row, 0)
        x = jnp.where(mosaic_dropout.hidden_kept(words, first, rate), x, 0.0)
      room = self._shared.left.at[row // TILE, tile_at(column)]
      self._write(x, room, row, column)


class _Backward(TurnedBlock):
  """Applies the gradient of dropout and ReLU, and adds up rows."""

  def _fetch(self, n: Any) -> None:
    super()._fetch(n)

    # What the product is masked by comes in the place of a step's operands.
    @pl.when(n == self._n_steps)
    def _():
      rows = pl.ds(self._rows, SIDE)
      left, right = (
        self._device.inner.at[rows, tile_at(self._columns + column)]
        for column in (0, TILE)
      )
      self._copy(n, [left], right)

  def _finish(self, product: jax.Array) -> None:
    shared, scale = self._shared, 1 / (1 - self._static.rate)
    stage = self._n_steps % STAGES
    plgpu.barrier_wait(shared.loaded.at[stage])
    sums = [None, None]
    for row, column in PLACES:
      half = (shared.left, shared.right)[column // TILE].at[stage, tile_at(row)]
      x = product[row : row + TILE, column : column + TILE] * scale
      x = jnp.where(tiles.load(half).astype(jnp.float32) > 0, x, 0.0)
      tiles.meet()
      self._write(x, half, row, column)
      above = sums[column // TILE]
      sums[column // TILE] = x if above is None else above + x
    self._write_sums(sums)
