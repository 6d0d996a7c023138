"""Cross-entropy with a large vocabulary on Hopper, without arrays of logits.

XLA writes the logits in float32, and reads them to find their log-sum-exp, or
their gradients. Here a block does that with the sums in its registers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_products as products
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import KERNEL_SIDE as SIDE
from txl_jax.ops.mosaic_product_block import (
  PLACES,
  Block,
  TurnedBlock,
  operands,
  product_kernel,
  room_for_sums,
  tile_at,
)
from txl_jax.ops.mosaic_tiles import TILE

# Arrays on the device: what each kernel reads, and what it writes.
_WORDS = ('left', 'right', 'bias')
_FORWARD = (*_WORDS, 'out')
_BACKWARD = (*_WORDS, 'targets', 'lse', 'cotangent', 'out', 'sums')


def log_sum_exps(
  hidden_RE: jax.Array, weight_VE: jax.Array, bias_V: jax.Array
) -> jax.Array:
  """Log-sum-exps of the logits of every 128 words, float32 [V / 128, R].

  Args:
    hidden_RE: bfloat16; R a multiple of 128, E of 64.
    weight_VE: bfloat16; V a multiple of 128.
    bias_V: float32.
  """
  (R, E), V = hidden_RE.shape, len(bias_V)
  return _forward(R, E, V)(hidden_RE, weight_VE, bias_V)


def logit_gradients(
  hidden_RE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_R: jax.Array,
  lse_R: jax.Array,
  cotangent_R: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The gradients of the logits, given those of the losses.

  Args:
    hidden_RE: bfloat16; R a multiple of 128, E of 64.
    weight_VE: bfloat16; V a multiple of 128.
    bias_V: float32.
    targets_R: int32.
    lse_R: the log-sum-exp of each row's logits, float32.
    cotangent_R: the gradient of each row's loss, float32.

  Returns:
    The gradients, bfloat16 [R, V], and sums of their rows before they are
    rounded, float32 [R / 128, V].
  """
  (R, E), V = hidden_RE.shape, len(bias_V)
  per_row = targets_R, lse_R, cotangent_R
  return _backward(R, E, V)(hidden_RE, weight_VE, bias_V, *per_row)


class _Static(NamedTuple):
  """What is known when a kernel is compiled."""

  n_blocks: tuple[int, int]
  n_steps: int


@functools.cache
def _forward(R: int, E: int, V: int) -> Any:
  out_type = jax.ShapeDtypeStruct((V // SIDE, R), jnp.float32)
  lse = plgpu.SMEM((SIDE,), jnp.float32)
  return _kernel(_Forward, _FORWARD, (R, E, V), out_type, lse=lse)


@functools.cache
def _backward(R: int, E: int, V: int) -> Any:
  out_type = [
    jax.ShapeDtypeStruct((R, V), jnp.bfloat16),
    jax.ShapeDtypeStruct((R // SIDE, V), jnp.float32),
  ]
  sizes, room = (R, E, V), room_for_sums()
  return _kernel(_Backward, _BACKWARD, sizes, out_type, **room)


def _kernel(
  block: type[Block],
  names: tuple[str, ...],
  sizes: tuple[int, int, int],
  out_type: Any,
  **room: Any,
) -> Any:
  R, E, V = sizes
  static = _Static((R // SIDE, V // SIDE), E // TILE)
  room |= dict(left=operands(SIDE, TILE), right=operands(SIDE, TILE))
  return product_kernel(
    block.body(static, names), static.n_blocks, out_type, room, 2
  )


class _Block(TurnedBlock):
  """Logits of 128 rows and words."""

  def _logits(self, product: jax.Array, row: int, column: int) -> jax.Array:
    """A tile, bias included."""
    x = product[row : row + TILE, column : column + TILE]
    return x + products.along(self._device.bias, self._columns + column, 1)


class _Forward(_Block):
  """Finds the log-sum-exp of each row."""

  def _finish(self, product: jax.Array) -> None:
    for row in (0, TILE):
      both = [self._logits(product, row, column) for column in (0, TILE)]
      most = jnp.maximum(*(x.max(axis=1) for x in both))
      in_all = lax.broadcast_in_dim(most, (TILE, TILE), [0])
      left, right = (jnp.exp(x - in_all).sum(axis=1) for x in both)
      self._shared.lse[tile_at(row)] = most + jnp.log(left + right)
    place = lax.div(self._columns, SIDE), pl.ds(self._rows, SIDE)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(self._shared.lse, self._device.out.at[place])


class _Backward(_Block):
  """Probabilities, less one at each target, times the gradient of the loss."""

  def _finish(self, product: jax.Array) -> None:
    # All are done with the operands: there is room for the result.
    tiles.meet()
    sums = [None, None]
    for row, column in PLACES:
      x = self._gradient(product, row, column)
      room = self._shared.left.at[row // TILE, tile_at(column)]
      self._write(x, room, row, column)
      above = sums[column // TILE]
      sums[column // TILE] = x if above is None else above + x
    self._write_sums(sums)

  def _gradient(self, product: jax.Array, row: int, column: int) -> jax.Array:
    targets, lse, cotangent = (
      products.along(source, self._rows + row, 0)
      for source in (
        self._device.targets,
        self._device.lse,
        self._device.cotangent,
      )
    )
    x = jnp.exp(self._logits(product, row, column) - lse)
    hit = tiles.columns(self._columns + column) == targets
    return jnp.where(hit, x - 1, x) * cotangent
