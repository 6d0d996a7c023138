"""Relative attention as one kernel for NVIDIA's Hopper: the forward pass.

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
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_slant as slant
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

_LOWEST = -1e30
# Arrays on the device: what the kernel reads, and what it writes.
_READ = ('qu', 'qv', 'k', 'v', 'r', 'first', 'tiles', 'places', 'words')
_WRITTEN = ('out', 'lse')


def forward(
  qu_BTHC: jax.Array,
  qv_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  tiles_BIS2: jax.Array,
  places_2: jax.Array,
  words_HBT: jax.Array | None = None,
  *,
  rate: float = 0.0,
  heads_first: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """What each of S splits attends to.

  Args:
    qu_BTHC: queries with content bias, scaled; T a multiple of 64.
    qv_BTHC: queries with position bias, scaled.
    k_BLHC: keys, L a multiple of 64; [H, B, L, C] if `heads_first`.
    v_BLHC: values, likewise.
    r_HWC: the projected table, with rows for all that a tile may touch.
    first_BT: int32, the first key that each query sees.
    tiles_BIS2: the tiles of keys of each split, from `tiles_of`.
    places_2: int32, the key at the place of the first query, and the row of the
      table where the window of queries and keys from 0 begins.
    words_HBT: of dropout's hash; None without dropout.
    rate: share of weights that are dropped.
    heads_first: how the keys lie.

  Returns:
    Values [S, B, T, H, C], and of each query the logarithm to base 2 of the sum
    of its weights [S, H, B, T].
  """
  B, T, H, C = qu_BTHC.shape
  arrays = (qu_BTHC, qv_BTHC, k_BLHC, v_BLHC, r_HWC, first_BT, tiles_BIS2)
  words = () if words_HBT is None else (words_HBT,)
  kernel = _kernel(tiles_BIS2.shape[2], H, B, T, C, rate, heads_first)
  return kernel(*arrays, places_2, *words)


def tiles_of(
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


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  n_splits: int
  stages: int  # tiles that are fetched ahead, the one at work included
  rate: float  # of dropout
  heads_first: bool


@functools.cache
def _kernel(
  n_splits: int, H: int, B: int, T: int, C: int, rate: float, heads_first: bool
) -> Any:
  # Two blocks share a processor if they fit; else fetching ahead is worth it.
  stages = 2 if C == 64 else 1
  static = _Static(n_splits, stages, rate, heads_first)

  names = (*(_READ if rate else _READ[:-1]), *_WRITTEN)

  def body(*arrays: Any, **shared: Any) -> None:
    device = SimpleNamespace(**dict(zip(names, arrays, strict=True)))
    _attend_block(static, device, SimpleNamespace(**shared))

  tile = functools.partial(tiles.shared_tile, C)
  return plgpu.kernel(
    body,
    out_type=(
      jax.ShapeDtypeStruct((n_splits, B, T, H, C), jnp.bfloat16),
      jax.ShapeDtypeStruct((n_splits, H, B, T), jnp.float32),
    ),
    scratch_types=dict(
      **dict(qu=tile(), qv=tile()),
      **dict(k=tile(stages), r=tile(stages), v=tile(stages)),
      ring=slant.shared_ring(),
      first=plgpu.SMEM((TILE,), jnp.int32),
      **({'words': plgpu.SMEM((TILE,), jnp.uint32)} if rate else {}),
      lse=plgpu.SMEM((TILE,), jnp.float32),
      ready=plgpu.Barrier(num_barriers=4),
      loaded=plgpu.Barrier(num_barriers=3 * stages),
    ),
    grid=(H, T // TILE, B * n_splits),
    grid_names=('head', 'queries', 'row'),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def _attend_block(
  static: _Static, device: SimpleNamespace, shared: SimpleNamespace
) -> None:
  """A block of the kernel: 64 queries, and the tiles of a split."""
  n_splits, stages, rate, heads_first = static
  head, row = lax.axis_index('head'), lax.axis_index('row')
  block = lax.axis_index('queries')
  row, split = lax.div(row, n_splits), lax.rem(row, n_splits)
  queries = pl.ds(block * TILE, TILE)
  begin = device.tiles[row, block, split, 0]
  until = device.tiles[row, block, split, 1]
  end = device.places[0] + block * TILE
  window = device.places[1] - block * TILE
  needed = [
    (device.qu.at[row, queries, head], shared.qu),
    (device.qv.at[row, queries, head], shared.qv),
    (device.first.at[row, queries], shared.first),
  ]
  if rate:
    needed.append((device.words.at[head, row, queries], shared.words))
  tiles.fetch(needed, shared.ready)

  def rows(at: Any) -> Any:
    """64 rows of the table, the left half of the window of a tile."""
    return device.r.at[head, pl.ds(window + at * TILE, TILE)]

  def fetch(at: Any, stage: Any) -> None:
    keys = tiles.keys(head, row, at, heads_first)
    for n, (source, target) in enumerate(
      (
        (rows(at + 1), shared.r),
        (device.k.at[*keys], shared.k),
        (device.v.at[*keys], shared.v),
      )
    ):
      loaded = shared.loaded.at[n * stages + stage]
      plgpu.copy_gmem_to_smem(source, target.at[stage], loaded)

  @pl.when(begin < until)
  def _():
    last = stages - 1
    plgpu.copy_gmem_to_smem(
      rows(begin), shared.r.at[last], shared.loaded.at[last]
    )
    plgpu.barrier_wait(shared.loaded.at[last])
    slant.keep(shared.ring, 0, tiles.product(shared.qv, shared.r.at[last]))
    plgpu.commit_smem()
    fetch(begin, 0)

  step = functools.partial(_step, static, shared, fetch, begin, until, end)
  # Above the lowest, so that a query that sees nothing has no weights.
  state = tiles.rows_of(_LOWEST / 2), tiles.rows_of(0.0), tiles.zeros(shared.qu)
  most, total, acc = lax.fori_loop(begin, until, step, state)
  plgpu.commit_smem()
  _to_shared(shared, most, total, acc / (1 - rate))
  plgpu.copy_smem_to_gmem(shared.qu, device.out.at[split, row, queries, head])
  plgpu.copy_smem_to_gmem(shared.lse, device.lse.at[split, head, row, queries])
  plgpu.wait_smem_to_gmem(0)


def _to_shared(
  shared: SimpleNamespace, most: jax.Array, total: jax.Array, acc: jax.Array
) -> None:
  """Puts the result where the queries were, and the sum of the weights."""
  total = jnp.maximum(total, 1e-30)
  inverse = lax.broadcast_in_dim(1 / total, acc.shape, [0])
  shared.qu[...] = (acc * inverse).astype(jnp.bfloat16)
  shared.lse[...] = most + jnp.log2(total)
  plgpu.commit_smem()


def _step(
  static: _Static,
  shared: SimpleNamespace,
  fetch: Any,
  begin: Any,
  until: Any,
  end: Any,
  at: Any,
  state: tuple,
) -> tuple:
  """Takes in tile number `at`: maximum, sum and weighted values of each row."""
  most, total, acc = state
  _, stages, rate, _ = static
  n = at - begin
  stage, half = lax.rem(n, stages), lax.rem(n, 2)
  plgpu.barrier_wait(shared.loaded.at[stage])
  slant.keep(
    shared.ring, 1 - half, tiles.product(shared.qv, shared.r.at[stage])
  )
  plgpu.commit_smem()

  def fetch_next() -> None:
    pl.when(at + 1 < until)(lambda: fetch(at + 1, lax.rem(n + 1, stages)))

  if stages > 1:
    # All are done with the tile before, whose place is free.
    fetch_next()
  position = slant.slanted(shared.ring, half * TILE)
  plgpu.barrier_wait(shared.loaded.at[stages + stage])
  score = tiles.product(shared.qu, shared.k.at[stage])
  score += position.astype(jnp.float32)
  seen = tiles.visible(shared.first, end, at * TILE)
  score = jnp.where(seen, score * math.log2(math.e), _LOWEST)
  more = jnp.maximum(most, score.max(axis=1))
  fade = jnp.exp2(most - more)
  weight = jnp.exp2(score - lax.broadcast_in_dim(more, score.shape, [0]))
  total = total * fade + weight.sum(axis=1)
  if rate:
    weight = jnp.where(tiles.kept(shared.words, at * TILE, rate), weight, 0.0)
  acc *= lax.broadcast_in_dim(fade, acc.shape, [0])
  plgpu.barrier_wait(shared.loaded.at[2 * stages + stage])
  acc = tiles.add_product(acc, weight.astype(jnp.bfloat16), shared.v.at[stage])
  if stages == 1:
    plgpu.commit_smem()
    fetch_next()
  return more, total, acc
