"""Relative attention as a kernel for NVIDIA's Hopper: one query a row.

A matrix product takes 64 queries at least, so with one of them reading keys and
values is all that should take time. A block goes through the tiles of keys of a
row and head. Each of the 64 places in a tile has a running softmax of its own,
for the keys that come to stand there, and only at the end the places meet.

Distances grow by one from key to key, so that the position scores, a plain
product of queries and table, are read from where the first key finds its own.
"""

import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

_LOWEST = -1e30
# Copies begin at multiples of 16 bytes and are multiples of 128 bytes, position
# scores begin anywhere.
_STEP, _FETCHED = 4, TILE + 32
# Tiles that a block has fetched or is fetching; with more of them, fewer blocks
# share a processor.
_STAGES = 2
# Arrays on the device: what the kernel reads, and what it writes.
_NAMES = ('q', 'position', 'k', 'v', 'first', 'places', 'out', 'lse')
# A number is written as often as a copy needs.
COPIES = 4


def decode(
  q_BHC: jax.Array,
  position_HBW: jax.Array,
  k_HBLC: jax.Array,
  v_HBLC: jax.Array,
  first_B: jax.Array,
  places_2: jax.Array,
  n_splits: int,
) -> tuple[jax.Array, jax.Array]:
  """What is attended to in each of S splits of the keys.

  Args:
    q_BHC: bfloat16, queries with content bias, scaled.
    position_HBW: float32, position scores by row of the table.
    k_HBLC: bfloat16, keys, L a multiple of 64.
    v_HBLC: bfloat16, values.
    first_B: int32, the first key that each query sees.
    places_2: int32, the last key that it sees, and the row of the table where
      it finds the distance to key 0. Rows go on for `TABLE_MARGIN`.
    n_splits: S.

  Returns:
    Values [S, B, H, C], bfloat16 of a single split and else float32, and of
    each query the logarithm to base 2 of the sum of its weights, `COPIES` times
    [S, H, B, COPIES].
  """
  B, H, C = q_BHC.shape
  kernel = _kernel(n_splits, H, B, C)
  return kernel(q_BHC, position_HBW, k_HBLC, v_HBLC, first_B, places_2)


@functools.cache
def _kernel(n_splits: int, H: int, B: int, C: int) -> Any:
  dtype = jnp.bfloat16 if n_splits == 1 else jnp.float32

  def body(*arrays: Any, **shared: Any) -> None:
    device = SimpleNamespace(**dict(zip(_NAMES, arrays, strict=True)))
    _attend(n_splits, device, SimpleNamespace(**shared))

  return plgpu.kernel(
    body,
    out_type=(
      jax.ShapeDtypeStruct((n_splits, B, H, C), dtype),
      jax.ShapeDtypeStruct((n_splits, H, B, COPIES), jnp.float32),
    ),
    scratch_types=dict(
      k=tiles.shared_tile(C, _STAGES),
      v=tiles.shared_tile(C, _STAGES),
      position=plgpu.SMEM((_STAGES, _FETCHED), jnp.float32),
      q=plgpu.SMEM((C,), jnp.bfloat16),
      out=plgpu.SMEM((C,), dtype),
      lse=plgpu.SMEM((C,), jnp.float32),
      ready=plgpu.Barrier(num_barriers=1),
      loaded=plgpu.Barrier(num_barriers=3 * _STAGES),
    ),
    grid=(H, B * n_splits),
    grid_names=('head', 'row'),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def _attend(
  n_splits: int, device: SimpleNamespace, shared: SimpleNamespace
) -> None:
  """A block of the kernel: the query of a row and head, the keys of a split."""
  head, row = lax.axis_index('head'), lax.axis_index('row')
  row, split = lax.div(row, n_splits), lax.rem(row, n_splits)
  first, last, start = device.first[row], device.places[0], device.places[1]
  shift = lax.rem(start, _STEP)
  low, high = lax.div(first, TILE), lax.div(last, TILE) + 1
  each = lax.div(high - low + n_splits - 1, n_splits)
  begin = jnp.minimum(low + split * each, high)
  until = jnp.minimum(begin + each, high)

  def fetch(at: Any) -> None:
    """Begins to fetch a tile of keys, unless it is another split's."""
    some, stage = pl.ds(at * TILE, TILE), lax.rem(at - begin, _STAGES)
    rows = pl.ds(start - shift + at * TILE, _FETCHED)
    pairs = (
      (device.position.at[head, row, rows], shared.position),
      (device.k.at[head, row, some], shared.k),
      (device.v.at[head, row, some], shared.v),
    )

    @pl.when(at < until)
    def _():
      for n, (source, target) in enumerate(pairs):
        loaded = shared.loaded.at[n * _STAGES + stage]
        plgpu.copy_gmem_to_smem(source, target.at[stage], loaded)

  for n in range(_STAGES):
    fetch(begin + n)
  tiles.fetch([(device.q.at[row, head], shared.q)], shared.ready)
  q = tiles.in_each_row(shared.q).astype(jnp.float32)

  def step(at: Any, state: tuple) -> tuple:
    seen = tiles.places(at * TILE)
    seen = (seen >= first) & (seen <= last)
    stage = lax.rem(at - begin, _STAGES)
    position = shared.position.at[stage, pl.ds(shift, TILE)]
    state = _step(shared, stage, q, position, seen, state)
    # All have read the tile, whose place is free.
    plgpu.commit_smem()
    fetch(at + _STAGES)
    return state

  # Above the lowest, so that what is not seen has no weight.
  state = tiles.rows_of(_LOWEST / 2), tiles.rows_of(0.0), tiles.zeros(q)
  out, lse = _together(*lax.fori_loop(begin, until, step, state))
  shared.out[...], shared.lse[...] = out.astype(shared.out.dtype), lse
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(shared.out, device.out.at[split, row, head])
  plgpu.copy_smem_to_gmem(
    shared.lse.at[pl.ds(0, COPIES)], device.lse.at[split, head, row]
  )
  plgpu.wait_smem_to_gmem(0)


def _step(
  shared: SimpleNamespace,
  stage: Any,
  q: jax.Array,
  position: Any,
  seen: jax.Array,
  state: tuple,
) -> tuple:
  """Takes in a tile: maximum, sum and weighted values of each place in it."""
  most, total, acc = state
  for n in (0, 1):
    plgpu.barrier_wait(shared.loaded.at[n * _STAGES + stage])
  keys = tiles.load(shared.k.at[stage]).astype(jnp.float32)
  score = (keys * q).sum(axis=1)
  score += tiles.load_rows(position)
  score = jnp.where(seen, score * math.log2(math.e), _LOWEST)
  more = jnp.maximum(most, score)
  fade, weight = jnp.exp2(most - more), jnp.exp2(score - more)
  plgpu.barrier_wait(shared.loaded.at[2 * _STAGES + stage])
  values = tiles.load(shared.v.at[stage]).astype(jnp.float32)
  acc = acc * _wide(fade, acc) + values * _wide(weight, acc)
  return more, total * fade + weight, acc


def _together(
  most: jax.Array, total: jax.Array, acc: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What all places have attended to [C], and the sum of the weights."""
  most = _wide(most, acc)
  highest = most.max(axis=0)
  weight = jnp.exp2(most - lax.broadcast_in_dim(highest, acc.shape, [1]))
  total = (_wide(total, acc) * weight).sum(axis=0)
  total = jnp.maximum(total, 1e-30)
  return (acc * weight).sum(axis=0) / total, highest + jnp.log2(total)


def _wide(x: jax.Array, like: jax.Array) -> jax.Array:
  """A number of each row, for all columns."""
  return lax.broadcast_in_dim(x, like.shape, [0])
