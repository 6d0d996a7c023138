"""Tiles of 64 rows, the size of a matrix product, in kernels for Hopper."""

import functools
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
  shape, layout = (TILE, TILE), plgpu.Layout.WGMMA
  first_T = plgpu.load(first, layout=layout.reduce(1))
  query = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
  at = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=layout) + key
  return (at <= query + end) & (at >= lax.broadcast_in_dim(first_T, shape, [0]))


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
