"""Relative attention as one kernel for NVIDIA's Hopper, forward only.

Scores never leave the chip. A block of the kernel takes 64 queries of a row and
head, and goes through the keys in tiles of 64 with a running softmax.

The position score of query i and key j is (q_i + v) . r[row], where `row` grows
by one with each key and falls by one with each query. So a tile meets a window
of 127 rows of the table. Their products with the queries, [64, 128], are
written to shared memory, and read back along a slant: row i from column 63 - i
on. The right half of a window is the left half of the next tile's; each tile
multiplies 64 new rows of the table, and a ring of two halves keeps what comes
out.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.alignment import ALIGNMENT, pad
from txl_jax.ops.mosaic_tiles import TILE

# Keys are divided among more blocks where there are fewer than a GPU can run.
_ENOUGH_BLOCKS = 264
_LOWEST = -1e30


# Compiled for itself, so that it is lowered once for all layers.
@jax.jit
def attend(
  qu_HBTC: jax.Array,
  qv_HBTC: jax.Array,
  k_HBLC: jax.Array,
  v_HBLC: jax.Array,
  r_HWC: jax.Array,
  end: jax.Array,
  first_BT: jax.Array,
) -> jax.Array:
  """Attends from T queries, the first of which stands at key `end`.

  Args:
    qu_HBTC: queries with content bias, scaled.
    qv_HBTC: queries with position bias, scaled.
    k_HBLC: keys; those that no query sees may be anything finite.
    v_HBLC: values.
    r_HWC: the projected table, distances descending to 0; distances beyond
      that of its first row count as that one.
    end: int32, the key at the place of the first query.
    first_BT: int32, the first key that each query sees, its own being the last.

  Returns:
    The attended values [H, B, T, C].
  """
  H, B, T, C = qu_HBTC.shape
  L, T_pad = k_HBLC.shape[2], -(-T // TILE) * TILE
  queries = [pad(x, (H, B, T_pad, C)) for x in (qu_HBTC, qv_HBTC)]
  first_BT = jnp.pad(
    first_BT.astype(jnp.int32), ((0, 0), (0, T_pad - T)), mode='edge'
  )
  n_blocks = H * B * T_pad // TILE
  n_splits = min(-(-_ENOUGH_BLOCKS // n_blocks), L // TILE)
  table, start = _table(r_HWC, L, end)
  out, lse = _kernel(n_splits, H, B, T_pad, C)(
    *(*queries, k_HBLC, v_HBLC, table, first_BT),
    _tiles_of(first_BT, end, T, L, n_splits),
    jnp.stack([jnp.int32(end), start]),
  )
  return _together(out, lse)[:, :, :T]


def _tiles_of(
  first_BT: jax.Array, end: jax.Array, T: int, L: int, n_splits: int
) -> jax.Array:
  """First tile of keys, and the one after the last, int32 [B, I, S, 2].

  Of those that some query of the I-th block sees, divided among S splits.
  """
  B, T_pad = first_BT.shape
  first_BI = first_BT.reshape(B, T_pad // TILE, TILE).min(-1)
  low_BI = jnp.clip(first_BI, 0, L - 1) // TILE
  last_I = jnp.minimum(jnp.arange(TILE, T_pad + 1, TILE), T) + end
  high_BI1 = jnp.broadcast_to(-(-last_I // TILE), low_BI.shape)[..., None]
  each_BI1 = -(-(high_BI1 - low_BI[..., None]) // n_splits)
  begin_BIS = low_BI[..., None] + jnp.arange(n_splits) * each_BI1
  begin_BIS = jnp.minimum(begin_BIS, high_BI1)
  until_BIS = jnp.minimum(begin_BIS + each_BI1, high_BI1)
  return jnp.stack([begin_BIS, until_BIS], axis=-1).astype(jnp.int32)


def _table(
  r_HWC: jax.Array, L: int, end: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The table with rows for all that a tile may touch.

  Returns:
    The table, and the row where the window of queries and keys from 0 begins,
    a multiple of 8, as rows are fetched by eights.
  """
  missing = max(0, L - r_HWC.shape[1])
  far = jnp.broadcast_to(r_HWC[:, :1], (len(r_HWC), missing, r_HWC.shape[2]))
  table = jnp.concatenate([far, r_HWC], axis=1)
  start = jnp.int32(table.shape[1] - end)
  shift = -start % ALIGNMENT
  # Around it are rows that only padded queries and unseen keys meet.
  table = jnp.pad(table, ((0, 0), (TILE + ALIGNMENT, 2 * TILE), (0, 0)))
  size = table.shape[1] - ALIGNMENT
  table = lax.dynamic_slice_in_dim(table, ALIGNMENT - shift, size, axis=1)
  return table, start + shift


def _together(out: jax.Array, lse: jax.Array) -> jax.Array:
  """What the splits have attended to [S, H, B, T, C], weighted."""
  if len(out) == 1:
    return out[0]
  weight = jnp.exp2(lse - lse.max(axis=0))
  weight /= weight.sum(axis=0)
  return (out * weight[..., None]).sum(axis=0).astype(out.dtype)


class _Refs(NamedTuple):
  """What a block works with: arrays on the device (_g), and shared memory."""

  qu_g: Any
  qv_g: Any
  k_g: Any
  v_g: Any
  r_g: Any
  first_g: Any
  tiles_g: Any
  places_g: Any
  out_g: Any
  lse_g: Any
  qu: Any
  qv: Any
  k: Any
  r: Any
  v: Any
  ring: Any
  first: Any
  lse: Any
  ready: Any
  loaded: Any


@functools.cache
def _kernel(n_splits: int, H: int, B: int, T: int, C: int) -> Any:
  # Two blocks share a processor if they fit; else fetching ahead is worth it.
  stages = 2 if C == 64 else 1

  def body(*arrays: Any, **shared: Any) -> None:
    _attend_block(n_splits, stages, _Refs(*arrays, **shared))

  tile = functools.partial(tiles.shared_tile, C)
  return plgpu.kernel(
    body,
    out_type=(
      jax.ShapeDtypeStruct((n_splits, H, B, T, C), jnp.bfloat16),
      jax.ShapeDtypeStruct((n_splits, H, B, T), jnp.float32),
    ),
    scratch_types=dict(
      **dict(qu=tile(), qv=tile()),
      **dict(k=tile(stages), r=tile(stages), v=tile(stages)),
      ring=tiles.shared_ring(),
      first=plgpu.SMEM((TILE,), jnp.int32),
      lse=plgpu.SMEM((TILE,), jnp.float32),
      ready=plgpu.Barrier(num_barriers=3),
      loaded=plgpu.Barrier(num_barriers=3 * stages),
    ),
    grid=(H, T // TILE, B * n_splits),
    grid_names=('head', 'queries', 'row'),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def _attend_block(n_splits: int, stages: int, refs: _Refs) -> None:
  """A block of the kernel: 64 queries, and the tiles of a split."""
  head, row = lax.axis_index('head'), lax.axis_index('row')
  block = lax.axis_index('queries')
  row, split = lax.div(row, n_splits), lax.rem(row, n_splits)
  queries = pl.ds(block * TILE, TILE)
  begin = refs.tiles_g[row, block, split, 0]
  until = refs.tiles_g[row, block, split, 1]
  end = refs.places_g[0] + block * TILE
  window = refs.places_g[1] - block * TILE
  for n, (source, target) in enumerate(
    (
      (refs.qu_g.at[head, row, queries], refs.qu),
      (refs.qv_g.at[head, row, queries], refs.qv),
      (refs.first_g.at[row, queries], refs.first),
    )
  ):
    plgpu.copy_gmem_to_smem(source, target, refs.ready.at[n])
  for n in range(3):
    plgpu.barrier_wait(refs.ready.at[n])

  def rows(at: Any) -> Any:
    """64 rows of the table, the left half of the window of a tile."""
    return refs.r_g.at[head, pl.ds(window + at * TILE, TILE)]

  def fetch(at: Any, stage: Any) -> None:
    keys = pl.ds(at * TILE, TILE)
    for n, (source, target) in enumerate(
      (
        (rows(at + 1), refs.r),
        (refs.k_g.at[head, row, keys], refs.k),
        (refs.v_g.at[head, row, keys], refs.v),
      )
    ):
      loaded = refs.loaded.at[n * stages + stage]
      plgpu.copy_gmem_to_smem(source, target.at[stage], loaded)

  @pl.when(begin < until)
  def _():
    last = stages - 1
    plgpu.copy_gmem_to_smem(rows(begin), refs.r.at[last], refs.loaded.at[last])
    plgpu.barrier_wait(refs.loaded.at[last])
    tiles.keep(refs.ring, 0, tiles.product(refs.qv, refs.r.at[last]))
    plgpu.commit_smem()
    fetch(begin, 0)

  step = functools.partial(_step, stages, refs, fetch, begin, until, end)
  state = tiles.rows_of(_LOWEST), tiles.rows_of(0.0), tiles.zeros(refs.qu)
  most, total, acc = lax.fori_loop(begin, until, step, state)
  total = jnp.maximum(total, 1e-30)
  plgpu.commit_smem()
  inverse = lax.broadcast_in_dim(1 / total, acc.shape, [0])
  refs.qu[...] = (acc * inverse).astype(jnp.bfloat16)
  refs.lse[...] = most + jnp.log2(total)
  plgpu.commit_smem()
  plgpu.copy_smem_to_gmem(refs.qu, refs.out_g.at[split, head, row, queries])
  plgpu.copy_smem_to_gmem(refs.lse, refs.lse_g.at[split, head, row, queries])
  plgpu.wait_smem_to_gmem(0)


def _step(
  stages: int,
  refs: _Refs,
  fetch: Any,
  begin: Any,
  until: Any,
  end: Any,
  at: Any,
  state: tuple,
) -> tuple:
  """Takes in tile number `at`: maximum, sum and weighted values of each row."""
  most, total, acc = state
  n = at - begin
  stage, half = lax.rem(n, stages), lax.rem(n, 2)
  plgpu.barrier_wait(refs.loaded.at[stage])
  tiles.keep(refs.ring, 1 - half, tiles.product(refs.qv, refs.r.at[stage]))
  plgpu.commit_smem()

  def fetch_next() -> None:
    pl.when(at + 1 < until)(lambda: fetch(at + 1, lax.rem(n + 1, stages)))

  if stages > 1:
    # All are done with the tile before, whose place is free.
    fetch_next()
  position = tiles.slanted(refs.ring, half * TILE)
  plgpu.barrier_wait(refs.loaded.at[stages + stage])
  score = tiles.product(refs.qu, refs.k.at[stage])
  score += position.astype(jnp.float32)
  seen = tiles.visible(refs.first, end, at * TILE)
  score = jnp.where(seen, score * math.log2(math.e), _LOWEST)
  more = jnp.maximum(most, score.max(axis=1))
  fade = jnp.exp2(most - more)
  weight = jnp.exp2(score - lax.broadcast_in_dim(more, score.shape, [0]))
  total = total * fade + weight.sum(axis=1)
  acc *= lax.broadcast_in_dim(fade, acc.shape, [0])
  plgpu.barrier_wait(refs.loaded.at[2 * stages + stage])
  acc = tiles.add_product(acc, weight.astype(jnp.bfloat16), refs.v.at[stage])
  if stages == 1:
    plgpu.commit_smem()
    fetch_next()
  return more, total, acc
