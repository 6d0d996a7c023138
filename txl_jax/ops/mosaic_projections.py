"""Queries, keys and values on Hopper, and the gradient of what they come from.

XLA copies memory and segment next to each other, and projects them by three
products. Here one kernel goes through all three, and leaves that copy for the
gradients of the weights on its way.

The gradient is a sum of three products, and of what comes around the sublayer.
XLA writes each, having copied those rows of the gradients of keys and values
that belong to the segment, and then adds them up. Here one kernel goes through
all three.
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
  Block,
  TurnedBlock,
  operands,
  product_kernel,
  tile_at,
)
from txl_jax.ops.mosaic_tiles import TILE

# Arrays on the device: what each kernel reads, and what it writes.
_GRADIENTS, _WEIGHTS = ('dq', 'dk', 'dv'), ('w_q', 'w_k', 'w_v')
_BACKWARD = (*_GRADIENTS, *_WEIGHTS, 'around', 'out')
# Only the segment has queries: they come last.
_SOURCES, _PROJECTED = ('memory', 'hidden'), ('k', 'v', 'q')
_FORWARD = (*_SOURCES, *[f'w_{name}' for name in _PROJECTED])
_FORWARD += (*_PROJECTED, 'whole')


def project(
  memory_BMD: jax.Array,
  hidden_BTD: jax.Array,
  weights: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
  """Queries, keys and values, and memory and segment next to each other.

  Args:
    memory_BMD: bfloat16; M a multiple of 64, B M of 128, D of 64.
    hidden_BTD: bfloat16; T a multiple of 64, B T of 128.
    weights: bfloat16 [D, E] of queries, keys and values; E a multiple of 128.

  Returns:
    Arrays in bfloat16, [B, T, E], [B, M + T, E] twice, and [B, M + T, D].
  """
  (B, T, D), M, E = hidden_BTD.shape, memory_BMD.shape[1], weights[0].shape[1]
  w_q, w_k, w_v = weights
  flat = (x.reshape(-1, D) for x in (memory_BMD, hidden_BTD))
  k_BLE, v_BLE, q_BTE, whole_BLD = _forward(B, M, T, D, E)(
    *flat, *(w_k, w_v, w_q)
  )
  return q_BTE, k_BLE, v_BLE, whole_BLD


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
  kernel = _backward(B, T, D, E, n_before)
  around_RD = around_BTD.reshape(B * T, D)
  out_RD = kernel(dq_BTE, dk_BLE, dv_BLE, *weights, around_RD)
  return out_RD.reshape(B, T, D)


class _ForwardStatic(NamedTuple):
  """What is known when the kernel that projects is compiled."""

  n_blocks: tuple[int, int]
  n_steps: int
  lengths: tuple[int, int]  # of memory and segment
  n_remembered: int  # rows of the memory, of the whole batch
  n_columns: int  # of queries, of keys and of values


@functools.cache
def _forward(B: int, M: int, T: int, D: int, E: int) -> Any:
  n_blocks = B * (M + T) // SIDE, len(_PROJECTED) * E // SIDE
  static = _ForwardStatic(n_blocks, D // TILE, (M, T), B * M, E)
  out_type = [
    jax.ShapeDtypeStruct((B, length, width), jnp.bfloat16)
    for length, width in ((M + T, E), (M + T, E), (T, E), (M + T, D))
  ]
  room = dict(left=operands(SIDE, TILE), right=operands(TILE, SIDE))
  body = _Forward.body(static, _FORWARD)
  return product_kernel(body, n_blocks, out_type, room, 2)


class _Forward(Block):
  """Keys or values of memory or segment, or queries of the segment."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    static = self._static
    # Which of `_PROJECTED`, the first of its columns, and of which source.
    self._kind = lax.div(self._columns, static.n_columns)
    self._first_column = lax.rem(self._columns, static.n_columns)
    self._source = jnp.int32(self._rows >= static.n_remembered)

  def run(self) -> None:
    """Everything, unless these were queries of the memory."""
    wanted = (self._source == 1) | (self._kind < len(_PROJECTED) - 1)
    pl.when(wanted)(super().run)

  def _fetch(self, n: Any) -> None:
    self._wait_for_copies()
    pl.when(n < self._n_steps)(lambda: self._fetch_operands(n))

  def _fetch_operands(self, n: Any) -> None:
    device, along = self._device, tile_at(n * TILE)
    columns = pl.ds(self._first_column, SIDE)
    for i, source in enumerate(_SOURCES):
      for j, name in enumerate(_PROJECTED):

        @pl.when((self._source == i) & (self._kind == j))
        def _(i=i, source=source, name=name):
          rows = pl.ds(self._rows - i * self._static.n_remembered, SIDE)
          left, right = getattr(device, source), getattr(device, f'w_{name}')
          self._copy(n, [left.at[rows, along]], right.at[along, columns])

  def _step(self, n: Any, multiply: Any) -> None:
    super()._step(n, multiply)

    # Each block of keys of these rows copies some of what it multiplies.
    @pl.when(self._columns == lax.rem(n * SIDE, self._static.n_columns))
    def _():
      for half in (0, TILE):
        room = self._shared.left.at[lax.rem(n, STAGES), tile_at(half)]
        place = *self._place(half, behind=True), tile_at(n * TILE)
        plgpu.copy_smem_to_gmem(room, self._device.whole.at[place])

  def _wait_for_copies(self) -> None:
    """Until what they copy from may be overwritten."""
    copies = self._kind == 0
    pl.when(copies)(lambda: plgpu.wait_smem_to_gmem(0, wait_read_only=True))

  def _place(self, half: int, behind: bool) -> tuple[Any, Any]:
    """Where 64 of the rows are, in an array that may begin with the memory."""
    (M, T), source = self._static.lengths, self._source
    row = self._rows + half - source * self._static.n_remembered
    length = jnp.where(source == 0, M, T)
    before = source * M if behind else 0
    return lax.div(row, length), tile_at(before + lax.rem(row, length))

  def _finish(self, product: jax.Array) -> None:
    self._wait_for_copies()
    # All are done with the operands: there is room for the result.
    tiles.meet()
    for row, column in PLACES:
      room = self._shared.left.at[row // TILE, tile_at(column)]
      x = product[row : row + TILE, column : column + TILE]
      self._write(x, room, row, column)

  def _send(self, room: Any, row: int, column: int) -> None:
    for i, name in enumerate(_PROJECTED):

      @pl.when(self._kind == i)
      def _(name=name):
        place = self._place(row, behind=name != 'q')
        place = *place, tile_at(self._first_column + column)
        plgpu.copy_smem_to_gmem(room, getattr(self._device, name).at[place])


class _BackwardStatic(NamedTuple):
  """What is known when the kernel of the gradient is compiled."""

  n_blocks: tuple[int, int]
  n_steps: int
  n_tokens: int  # of a row of the batch
  n_before: int


@functools.cache
def _backward(B: int, T: int, D: int, E: int, n_before: int) -> Any:
  n_blocks = B * T // SIDE, D // SIDE
  static = _BackwardStatic(n_blocks, len(_WEIGHTS) * E // TILE, T, n_before)
  out_type = jax.ShapeDtypeStruct((B * T, D), jnp.bfloat16)
  room = dict(left=operands(SIDE, TILE), right=operands(SIDE, TILE))
  body = _Backward.body(static, _BACKWARD)
  return product_kernel(body, n_blocks, out_type, room, 3)


class _Backward(TurnedBlock):
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
