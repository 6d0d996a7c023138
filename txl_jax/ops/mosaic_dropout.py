"""Dropout in kernels for Hopper (ops/dropout.py).

Elements that share a hash are held by one thread, whether the rows of a tile of
attention weights are queries or keys.
"""

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

  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WG_SPLAT),
    return_type=tiles.in_registers(jnp.uint32),
  )
  def draw(ctx: Any, words: Any, first: Any) -> Any:
    del ctx
    place = arith.addi(tiles.thread_place()[1], first.registers.flat[0])
    start = arith.muli(place, _number(dropout.STRIDE))
    words = dict(zip(tiles.steps(), words.registers.flat, strict=True))
    pair = ir.VectorType.get((2,), ir.IntegerType.get_signless(32))

    def drawn(*step: int) -> Any:
      word = vector.extract(words[step], [], [0])
      index = arith.addi(start, _number(step[1] * dropout.STRIDE))
      bits = _mix(arith.xori(word, index))
      return vector.from_elements(pair, [arith.shli(bits, _number(16)), bits])

    return tiles.fragments(drawn, is_signed=False)

  return draw(words, jnp.asarray(first, jnp.int32)) >= _least(rate)


def _least(rate: float) -> jax.Array:
  return jnp.uint32(dropout.threshold(rate) << 16)


def _lots(words: jax.Array, key: Any, axis: int) -> jax.Array:
  """Of each element 16 bits, the upper ones; the axis of keys is 0 or 1."""

  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WG_SPLAT),
    return_type=tiles.in_registers(jnp.uint32),
  )
  def draw(ctx: Any, words: Any, key: Any) -> Any:
    del ctx
    place = arith.addi(tiles.thread_place()[axis], key.registers.flat[0])
    start = arith.muli(place, _number(dropout.STRIDE))
    words = dict(zip(tiles.steps(), words.registers.flat, strict=True))
    pair = ir.VectorType.get((2,), ir.IntegerType.get_signless(32))
    drawn = {}
    for step, word in words.items():
      if step[axis] & dropout.PARTNER:
        continue
      lots = [], []
      for n in range(2):
        further = (step[axis] + n * axis) * dropout.STRIDE
        index = arith.addi(start, _number(further))
        bits = _mix(arith.xori(vector.extract(word, [], [n]), index))
        lots[0].append(arith.shli(bits, _number(16)))
        lots[1].append(bits)
      partner = list(step)
      partner[axis] += dropout.PARTNER
      for place, lot in zip((step, tuple(partner)), lots):
        drawn[place] = vector.from_elements(pair, lot)
    return tiles.fragments(lambda *step: drawn[step], is_signed=False)

  return draw(words, jnp.asarray(key, jnp.int32))


def _mix(x: Any) -> Any:
  """As ops/dropout.py does."""
  for shift, factor in dropout.MIXING:
    x = arith.xori(x, arith.shrui(x, _number(shift)))
    x = arith.muli(x, _number(factor)) if factor else x
  return x


def _number(value: int) -> Any:
  signed = int(np.uint32(value % 2**32).view(np.int32))
  return arith.constant(ir.IntegerType.get_signless(32), signed)
