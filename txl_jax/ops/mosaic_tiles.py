"""Tiles of 64 rows, the size of a matrix product, in kernels for Hopper."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.experimental.mosaic.gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from txl_jax.ops import dropout

TILE = 64
# Elements from row to row of the ring: its slanted columns lie on other banks.
_PITCH = 2 * TILE + 8


def shared_tile(width: int, *lead: int) -> Any:
  """Room for bfloat16 tiles that products can read."""
  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  return plgpu.SMEM((*lead, TILE, width), jnp.bfloat16, transforms=transforms)


def shared_ring() -> Any:
  """Room for 64 rows of two halves, 64 columns each."""
  return plgpu.SMEM((TILE * _PITCH,), jnp.bfloat16)


def fetch(pairs: Sequence[tuple[Any, Any]], barriers: Any) -> None:
  """Copies arrays on the device to shared memory, and waits for all."""
  for n, (source, target) in enumerate(pairs):
    plgpu.copy_gmem_to_smem(source, target, barriers.at[n])
  for n in range(len(pairs)):
    plgpu.barrier_wait(barriers.at[n])


def load_rows(source: Any) -> jax.Array:
  """A number for each row, from shared memory."""
  return plgpu.load(source, layout=plgpu.Layout.WGMMA.reduce(1))


def zeros(like: Any) -> jax.Array:
  """Of the shape of a tile, float32 in registers."""
  return plgpu.layout_cast(
    jnp.zeros(like.shape, jnp.float32), plgpu.Layout.WGMMA
  )


def rows_of(value: float) -> jax.Array:
  """A number for each row, float32 in registers."""
  full = jnp.full((TILE,), value, jnp.float32)
  return plgpu.layout_cast(full, plgpu.Layout.WGMMA.reduce(1))


def product(left: Any, right: Any) -> jax.Array:
  """left right^T of two tiles in shared memory, [64, 64]."""

  def run(acc: Any) -> jax.Array:
    plgpu.wgmma(acc, left, right.T)
    return acc[...]

  return pl.run_scoped(run, plgpu.ACC((TILE, TILE), jnp.float32))


def add_product(acc: jax.Array, left: jax.Array, right: Any) -> jax.Array:
  """acc + left right, `left` in registers."""
  return pl.run_state(lambda ref: plgpu.wgmma(ref, left, right))(
    plgpu.ACC.init(acc)
  )


def visible(first: Any, end: Any, key: Any) -> jax.Array:
  """Which keys the queries see, [64, 64].

  Args:
    first: int32 in shared memory, the first key that each query sees.
    end: the key at the place of the first query.
    key: the first key of the tile.
  """
  query, at = _iota(jnp.int32, 0), _iota(jnp.int32, 1) + key
  first = lax.broadcast_in_dim(load_rows(first), at.shape, [0])
  return (at <= query + end) & (at >= first)


def kept(words: Any, key: Any, rate: float) -> jax.Array:
  """Which weights dropout keeps, [64, 64] (ops/dropout.py).

  Args:
    words: uint32 in shared memory, of each query.
    key: the first key of the tile.
    rate: share of weights that are dropped.
  """
  at = _iota(jnp.uint32, 1) + key.astype(jnp.uint32)
  word = lax.broadcast_in_dim(load_rows(words), at.shape, [0])
  return dropout.kept(word, at, rate)


def _iota(dtype: Any, axis: int) -> jax.Array:
  return plgpu.broadcasted_iota(
    dtype, (TILE, TILE), axis, layout=plgpu.Layout.WGMMA
  )


def keep(ring: Any, half: Any, columns: jax.Array) -> None:
  """Writes 64 columns into a half of the ring, 0 or 1."""
  rows = ring.at[pl.ds(0, TILE * _PITCH)].reshape(TILE, _PITCH)

  def write(n: int) -> None:
    target = rows.at[:, pl.ds(n * TILE, TILE)]
    target[...] = columns.astype(jnp.bfloat16)

  for n in range(2):
    pl.when(half == n)(functools.partial(write, n))


def slanted(ring: Any, turn: Any) -> jax.Array:
  """Row i of the ring from column 63 - i on, bfloat16 [64, 64].

  Args:
    ring: 64 rows.
    turn: the column that counts as the first.
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT),
    return_type=plgpu.ShapeDtypeStruct(
      (TILE, TILE), jnp.bfloat16, layout=plgpu.Layout.WGMMA
    ),
  )
  def load(ctx: Any, ref: Any, turn: Any) -> Any:
    del ctx
    layout, index = mgpu.WGMMA_LAYOUT, ir.IndexType.get()
    registers = np.empty(layout.registers_shape((TILE, TILE)), dtype=object)
    element = ir.MemRefType(ref.type).element_type
    several = ir.VectorType.get((layout.vector_length,), element)
    first = arith.addi(
      arith.index_cast(index, turn.registers.flat[0]),
      arith.constant(index, TILE - 1),
    )
    for place, (i, j) in zip(
      np.ndindex(registers.shape), layout.thread_idxs((TILE, TILE))
    ):
      row = arith.muli(i, arith.constant(index, _PITCH))
      column = arith.subi(arith.addi(first, j), i)
      found = []
      for n in range(layout.vector_length):
        at = arith.addi(column, arith.constant(index, n))
        # Round the ring.
        at = arith.andi(at, arith.constant(index, 2 * TILE - 1))
        found.append(memref.load(ref, [arith.addi(row, at)]))
      registers[place] = vector.from_elements(several, found)
    return mgpu.FragmentedArray(
      _registers=registers, _layout=layout, _is_signed=None
    )

  return load(ring, turn)


def write_slanted(target: Any, tile: jax.Array, turn: Any) -> None:
  """Writes row i of a tile [64, 64] from column 63 - i on, round two halves.

  Args:
    target: two tiles in shared memory, the halves.
    tile: bfloat16.
    turn: the column that counts as the first.
  """
  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

  @plgpu.inline_mgpu(
    arg_types=(
      plgpu.RefType(transforms),
      plgpu.Layout.WGMMA,
      plgpu.Layout.WG_SPLAT,
    )
  )
  def store(ctx: Any, ref: Any, tile: Any, turn: Any) -> None:
    del ctx
    index = ir.IndexType.get()

    def number(value: int) -> Any:
      return arith.constant(index, value)

    first = arith.addi(
      arith.index_cast(index, turn.registers.flat[0]), number(TILE - 1)
    )
    for values, (i, j) in zip(
      tile.registers.flat, tile.layout.thread_idxs((TILE, TILE))
    ):
      column = arith.subi(arith.addi(first, j), i)
      high, low = arith.shrui(i, number(3)), arith.andi(i, number(7))
      for n in range(tile.layout.vector_length):
        at = arith.andi(arith.addi(column, number(n)), number(2 * TILE - 1))
        half = arith.shrui(at, number(6))
        # Tiles are stored with the eights of columns of a row exchanged.
        eight = arith.andi(arith.shrui(at, number(3)), number(7))
        eight = arith.shli(arith.xori(eight, low), number(3))
        inner = arith.ori(eight, arith.andi(at, number(7)))
        value = vector.extract(values, [], [n])
        memref.store(value, ref, [half, high, number(0), low, inner])

  store(target, tile, turn)


def clear(target: Any) -> None:
  """Fills a tile in shared memory with zeros."""
  target[...] = zeros(target).astype(jnp.bfloat16)
