"""The gradient of what queries, keys and values are projected from, on Hopper.

It is a sum of three products, and of what comes around the sublayer. XLA writes
each, having copied those rows of the gradients of keys and values that belong
to the segment, and then adds them up. Here one kernel goes through all three.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import KERNEL_SIDE as SIDE
from txl_jax.ops.mosaic_product_block import (
  PLACES,
  STAGES,
  TurnedBlock,
  operands,
  product_kernel,
  tile_at,
)
from txl_jax.ops.mosaic_tiles import TILE

# Arrays on the device: what the kernel reads, and what it writes.
_GRADIENTS, _WEIGHTS = ('dq', 'dk', 'dv'), ('w_q', 'w_k', 'w_v')
_ARRAYS = (*_GRADIENTS, *_WEIGHTS, 'around', 'out')


def gradient(
  dq_BTE: jax.Array,
  dk_BLE: jax.Array,
  dv_BLE: jax.Array,
  weights: tuple[jax.Array, jax.Array, jax.Array],
  around_BTD: jax.Array,
  n_before: int,
) -> jax.Array:
  """The sum of all, bfloat16 [B, T, D].

  Args:
    dq_BTE: of queries, bfloat16; T a multiple of 64, B T of 128, E of 64.
    dk_BLE: of keys; L a multiple of 8.
    dv_BLE: of values.
    weights: bfloat16 [D, E] of queries, keys and values; D a multiple of 128.
    around_BTD: what comes around the sublayer.
    n_before: keys and values before those of the segment, a multiple of 8.
  """
  (B, T, D), E = around_BTD.shape, dq_BTE.shape[-1]
  kernel = _kernel(B, T, D, E, n_before)
  around_RD = around_BTD.reshape(B * T, D)
  out_RD = kernel(dq_BTE, dk_BLE, dv_BLE, *weights, around_RD)
  return out_RD.reshape(B, T, D)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  n_blocks: tuple[int, int]
  n_steps: int
  n_tokens: int  # of a row of the batch
  n_before: int


@functools.cache
def _kernel(B: int, T: int, D: int, E: int, n_before: int) -> Any:
  n_blocks = B * T // SIDE, D // SIDE
  static = _Static(n_blocks, len(_WEIGHTS) * E // TILE, T, n_before)
  out_type = jax.ShapeDtypeStruct((B * T, D), jnp.bfloat16)
  room = dict(left=operands(SIDE, TILE), right=operands(SIDE, TILE))
  body = _Gradient.body(static, _ARRAYS)
  return product_kernel(body, n_blocks, out_type, room, 3)


class _Gradient(TurnedBlock):
  """Goes through the products one after another, and adds what goes around."""

  def _fetch(self, n: Any) -> None:
    device, n_steps = self._device, self._n_steps
    each = n_steps // len(_WEIGHTS)
    along, columns = (
      tile_at(lax.rem(n, each) * TILE),
      pl.ds(self._columns, SIDE),
    )
    for i, names in enumerate(zip(_GRADIENTS, _WEIGHTS)):

      @pl.when(lax.div(n, each) == i)
      def _(i=i, names=names):
        left, right = (getattr(device, name) for name in names)
        before = self._static.n_before if i else 0
        halves = [
          left.at[*self._place(half, before), along] for half in (0, TILE)
        ]
        self._copy(n, halves, right.at[columns, along])

    # What is added comes in the place of a step's operands.
    @pl.when(n == n_steps)
    def _():
      upper, lower = tile_at(self._rows), tile_at(self._rows + TILE)
      left, right = (tile_at(self._columns + column) for column in (0, TILE))
      halves = [device.around.at[rows, left] for rows in (upper, lower)]
      rows = pl.ds(self._rows, SIDE)
      self._copy(n, halves, device.around.at[rows, right])

  def _place(self, half: int, before: int) -> tuple[Any, Any]:
    """Where 64 of the rows are in an array [B, before + T, E]."""
    row, n_tokens = self._rows + half, self._static.n_tokens
    return lax.div(row, n_tokens), tile_at(before + lax.rem(row, n_tokens))

  def _finish(self, product: jax.Array) -> None:
    shared, stage = self._shared, self._n_steps % STAGES
    plgpu.barrier_wait(shared.loaded.at[stage])
    for row, column in PLACES:
      half = (shared.left, shared.right)[column // TILE].at[stage, tile_at(row)]
      x = product[row : row + TILE, column : column + TILE]
      x += tiles.load(half).astype(jnp.float32)
      tiles.meet()
      self._write(x, half, row, column)
