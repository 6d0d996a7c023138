"""Dropout in kernels for Hopper (ops/dropout.py).

Elements that share a hash are held by one thread, whether the rows of a tile of
attention weights are queries or keys.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from txl_jax.ops import dropout
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE


def kept(words: Any, key: Any, rate: float) -> jax.Array:
  """Which weights dropout keeps, [64, 64], a row for each query.

  Args:
    words: uint32 in shared memory, of each query.
    key: the first key of the tile, a multiple of 64.
    rate: share of weights that are dropped.
  """
  row = tiles.load_rows(words)
  words = lax.broadcast_in_dim(row, (TILE, TILE), [0])
  return _lots(words, key, 1) >= _least(rate)


def kept_by_key(words: jax.Array, key: Any, rate: float) -> jax.Array:
  """The same, a row for each key; `words` are in all rows of a tile."""
  return _lots(words, key, 0) >= _least(rate)


def hidden_kept(words: jax.Array, first: Any, rate: float) -> jax.Array:
  """Which elements of hidden states dropout keeps, [64, 64].

  Args:
    words: uint32, in all columns of a tile.
    first: the number of the first column, which is even.
    rate: share of elements that are dropped.
  """

  def lots(start: Any, words: dict) -> dict:
    bits = {step: _bits(words[step], 0, start, step[1]) for step in words}
    return {step: _pair(_lower(x), x) for step, x in bits.items()}

  return _in_registers(words, first, 1, lots) >= _least(rate)


def _least(rate: float) -> jax.Array:
  return jnp.uint32(dropout.threshold(rate) << 16)


def _lots(words: jax.Array, key: Any, axis: int) -> jax.Array:
  """Of each weight 16 bits, the upper ones; the axis of keys is 0 or 1."""

  def lots(start: Any, words: dict) -> dict:
    drawn = {}
    for step, word in words.items():
      if step[axis] & dropout.PARTNER:
        continue
      both = [_bits(word, n, start, step[axis] + n * axis) for n in range(2)]
      partner = list(step)
      partner[axis] += dropout.PARTNER
      drawn[step] = _pair(*map(_lower, both))
      drawn[tuple(partner)] = _pair(*both)
    return drawn

  return _in_registers(words, key, axis, lots)


def _in_registers(
  words: jax.Array, first: Any, axis: int, lots: Callable[[Any, dict], dict]
) -> jax.Array:
  """A tile of what `lots` makes for each of the `tiles.steps` of a thread.

  Args:
    words: of rows or of columns.
    first: number of the tile's first element along the axis that is hashed.
    axis: that axis.
    lots: of the hash's index of a thread's first element, and of its words.
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WG_SPLAT),
    return_type=tiles.in_registers(jnp.uint32),
  )
  def draw(ctx: Any, words: Any, first: Any) -> Any:
    del ctx
    place = arith.addi(tiles.thread_place()[axis], first.registers.flat[0])
    start = arith.muli(place, _number(dropout.STRIDE))
    words = dict(zip(tiles.steps(), words.registers.flat, strict=True))
    drawn = lots(start, words)
    return tiles.fragments(lambda *step: drawn[step], is_signed=False)

  return draw(words, jnp.asarray(first, jnp.int32))


def _bits(pair: Any, n: int, start: Any, further: int) -> Any:
  """The hash of the n-th word of a pair, and an index `further` on."""
  index = arith.addi(start, _number(further * dropout.STRIDE))
  return _mix(arith.xori(vector.extract(pair, [], [n]), index))


def _lower(bits: Any) -> Any:
  """The lower 16 bits, moved up."""
  return arith.shli(bits, _number(16))


def _pair(*elements: Any) -> Any:
  kind = ir.VectorType.get((2,), ir.IntegerType.get_signless(32))
  return vector.from_elements(kind, elements)


def _mix(x: Any) -> Any:
  """As ops/dropout.py does."""
  for shift, factor in dropout.MIXING:
    x = arith.xori(x, arith.shrui(x, _number(shift)))
    x = arith.muli(x, _number(factor)) if factor else x
  return x


def _number(value: int) -> Any:
  signed = int(np.uint32(value % 2**32).view(np.int32))
  return arith.constant(ir.IntegerType.get_signless(32), signed)
