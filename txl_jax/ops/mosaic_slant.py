"""Reading tiles along a slant, in kernels for Hopper.

Row i of a tile [64, 64] lies from column 63 - i on, among the 128 columns of
two halves; which half is the left one changes from tile to tile. A thread
computes the 18 places that its 32 elements have up to a step that is known when
the kernel is compiled, anew for each tile: kept for all tiles, they would take
the registers.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.experimental.mosaic.gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

# Elements from row to row of the ring: its slanted columns lie on other banks.
_PITCH = 2 * TILE + 8


def shared_ring() -> Any:
  """Room for 64 rows of two halves, 64 columns each."""
  return plgpu.SMEM((TILE * _PITCH,), jnp.bfloat16)


def keep(ring: Any, half: Any, tile: jax.Array) -> None:
  """Writes a tile into a half of the ring, 0 or 1; not along a slant."""

  @plgpu.inline_mgpu(
    arg_types=(
      plgpu.RefType(),
      plgpu.Layout.WGMMA,
      plgpu.Layout.WG_SPLAT,
    )
  )
  def store(ctx: Any, ref: Any, tile: Any, half: Any) -> None:
    del ctx
    row, column = tiles.thread_place()
    half = arith.muli(half.registers.flat[0], _number(TILE))
    start = arith.addi(arith.muli(row, _number(_PITCH)), column)
    start = _index(arith.addi(start, half))
    for pair, (down, right) in zip(tile.registers.flat, tiles.steps()):
      step = arith.constant(ir.IndexType.get(), down * _PITCH + right)
      vector.store(pair, ref, [arith.addi(start, step)], alignment=4)

  store(ring, tile.astype(jnp.bfloat16), half)


def slanted(ring: Any, turn: Any) -> jax.Array:
  """The tile that lies along the slant, bfloat16 [64, 64].

  Args:
    ring: 64 rows.
    turn: the column that counts as the first, 0 or 64.
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT),
    return_type=tiles.in_registers(jnp.bfloat16),
  )
  def load(ctx: Any, ref: Any, turn: Any) -> Any:
    del ctx
    row, start = _start(turn)
    row = arith.muli(row, _number(_PITCH))

    @functools.cache
    def place(n: int) -> Any:
      return _index(arith.addi(row, _column(start, n)))

    def values(down: int, right: int) -> Any:
      below = arith.constant(ir.IndexType.get(), down * _PITCH)
      places = (place(right - down + n) for n in range(2))
      return _load_pair(ref, (arith.addi(at, below) for at in places))

    return tiles.fragments(values)

  return load(ring, turn)


def turned(ring: Any) -> jax.Array:
  """What lies along the slant from the first column on, transposed.

  Bfloat16 [64, 64]: a row for each column.
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(),),
    return_type=tiles.in_registers(jnp.bfloat16),
  )
  def load(ctx: Any, ref: Any) -> Any:
    del ctx
    row, column = tiles.thread_place()
    # A row further down the ring the slant is a column nearer.
    start = arith.muli(column, _number(_PITCH - 1))
    start = arith.addi(arith.addi(start, row), _number(TILE - 1))
    start = _index(start)

    def values(down: int, right: int) -> Any:
      steps = (down + (right + n) * (_PITCH - 1) for n in range(2))
      steps = (arith.constant(ir.IndexType.get(), step) for step in steps)
      return _load_pair(ref, (arith.addi(start, step) for step in steps))

    return tiles.fragments(values)

  return load(ring)


def folded(source: Any, by_row: bool = False) -> jax.Array:
  """What lies along the slant, its two halves laid on each other.

  No place has an element of both: column c of row i has one of the right half
  if i + c < 63, else one of the left. `joined` takes them apart.

  Args:
    source: a tile in shared memory, a row for each key and a column for each
      query.
    by_row: whether the result has a row for each row of the table, and a column
      for each query, instead of the other way round.

  Returns:
    bfloat16 [64, 64].
  """

  @plgpu.inline_mgpu(
    arg_types=(plgpu.RefType(tiles.TRANSFORMS),),
    return_type=tiles.in_registers(jnp.bfloat16),
  )
  def load(ctx: Any, ref: Any) -> Any:
    del ctx
    ref = mgpu.memref_fold(ref, 0, 4)
    row, column = tiles.thread_place()
    query = column if by_row else row
    start = arith.addi(arith.addi(row, column), _number(1))

    @functools.cache
    def key(step: int) -> Any:
      at = arith.andi(arith.addi(start, _number(step)), _number(TILE - 1))
      return arith.muli(at, _number(TILE))

    @functools.cache
    def place(n: int, step: int) -> Any:
      # Eights of columns are exchanged, by the row's number within eight rows.
      exchange = arith.andi(arith.addi(start, _number(n)), _number(7))
      exchange = arith.shli(exchange, _number(3))
      return arith.xori(arith.addi(query, _number(step)), exchange)

    def values(down: int, right: int) -> Any:
      steps = ((n, right + n if by_row else down) for n in range(2))
      places = (
        arith.addi(key(down + right + n), place(n, step)) for n, step in steps
      )
      return _load_pair(ref, map(_index, places))

    return tiles.fragments(values)

  return load(source)


def joined(left: jax.Array, right: jax.Array) -> jax.Array:
  """Of one `folded` tile what is of the left half, of another the rest."""

  @plgpu.inline_mgpu(
    arg_types=(plgpu.Layout.WGMMA, plgpu.Layout.WGMMA),
    return_type=tiles.in_registers(jnp.bfloat16),
  )
  def join(ctx: Any, left: Any, right: Any) -> Any:
    del ctx
    start = arith.addi(*tiles.thread_place())
    word = ir.VectorType.get((1,), ir.IntegerType.get_signless(32))

    @functools.cache
    def mask(step: int) -> Any:
      at = arith.addi(start, _number(step - (TILE - 1)))
      both, second = (
        arith.cmpi(arith.CmpIPredicate.sge, at, _number(n)) for n in (0, -1)
      )
      some = arith.select(second, _number(-(2**16)), _number(0))
      return arith.select(both, _number(-1), some)

    def chosen(left: Any, right: Any, step: int) -> Any:
      left, right = (
        vector.extract(vector.bitcast(word, x), [], [0]) for x in (left, right)
      )
      kept = arith.andi(arith.xori(left, right), mask(step))
      found = vector.from_elements(word, [arith.xori(right, kept)])
      return vector.bitcast(_pair_type(), found)

    pairs = iter(zip(left.registers.flat, right.registers.flat))
    return tiles.fragments(
      lambda down, right: chosen(*next(pairs), down + right)
    )

  return join(left, right)


def _pair_type() -> Any:
  """Of what a register holds: two elements."""
  return ir.VectorType.get((2,), ir.BF16Type.get())


def _load_pair(ref: Any, places: Iterable[Any]) -> Any:
  found = [memref.load(ref, [at]) for at in places]
  return vector.from_elements(_pair_type(), found)


def _number(value: int) -> Any:
  return arith.constant(ir.IntegerType.get_signless(32), value)


def _index(value: Any) -> Any:
  return arith.index_cast(ir.IndexType.get(), value)


def _start(turn: Any) -> tuple[Any, Any]:
  """Of a thread's first element: its row, and its column along the slant."""
  row, column = tiles.thread_place()
  start = arith.addi(turn.registers.flat[0], _number(TILE - 1))
  return row, arith.addi(start, arith.subi(column, row))


def _column(start: Any, n: int) -> Any:
  """`n` columns on, round the two halves."""
  return arith.andi(arith.addi(start, _number(n)), _number(2 * TILE - 1))
