"""The backward pass of relative attention as a kernel for NVIDIA's Hopper.

A block takes 64 queries of a row and head, and goes through the keys in tiles
of 64, as the forward kernel does. It computes the weights again, from the
logarithm of their sum that the forward pass kept, and adds up the gradient of
the queries. What it writes, in bfloat16, are the weights, the gradients of the
scores by key, and the same by row of the table: the other gradients are plain
matrix products of these. By row of the table, query i of the tile has its 64
numbers from column 63 - i on: they are written along the slant that the forward
pass reads along. Half of the columns are complete then; the others are once the
next tile is written.
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

# Arrays on the device: what the kernel reads, and what it writes.
_READ = ('qu', 'qv', 'dout', 'k', 'v', 'r', 'first', 'lse', 'mean', 'tiles')
_READ = (*_READ, 'words')
_WRITTEN = ('dqu', 'weight', 'dscore', 'draw')


class ScoreGradients(NamedTuple):
  """What the kernel writes; 0 where no query sees.

  Attributes:
    dqu_BTHC: gradient of the queries, by way of the keys.
    weight_BHTL: weights, as dropout leaves them.
    dscore_BHTL: gradients of the scores, by key.
    draw_HBTW: the same, by row of the table.
  """

  dqu_BTHC: jax.Array
  weight_BHTL: jax.Array
  dscore_BHTL: jax.Array
  draw_HBTW: jax.Array


def score_gradients(
  qu_BTHC: jax.Array,
  qv_BTHC: jax.Array,
  dout_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  lse_HBT: jax.Array,
  mean_HBT: jax.Array,
  tiles_BIS2: jax.Array,
  words_HBT: jax.Array | None = None,
  *,
  end: int,
  start: int,
  rate: float = 0.0,
) -> ScoreGradients:
  """The gradients of the scores, and of the queries with content bias.

  Args:
    qu_BTHC: queries with content bias, scaled; T a multiple of 64.
    qv_BTHC: queries with position bias, scaled.
    dout_BTHC: gradient of the result.
    k_BLHC: keys, L a multiple of 64.
    v_BLHC: values.
    r_HWC: the projected table, W a multiple of 64.
    first_BT: int32, the first key that each query sees.
    lse_HBT: float32, from `forward`.
    mean_HBT: float32, the mean of the weights' gradients, weighted by them.
    tiles_BIS2: from `tiles_of`, of a single split.
    words_HBT: of dropout's hash; None without dropout.
    end: the key at the place of the first query.
    start: the row of the table, a multiple of 64, where the window of queries
      and keys from 0 begins.
    rate: share of weights that are dropped.
  """
  B, T, H, C = qu_BTHC.shape
  static = _Static(end, start, k_BLHC.shape[1], r_HWC.shape[1], rate)
  rows = (first_BT, lse_HBT, mean_HBT)
  words = () if words_HBT is None else (words_HBT,)
  found = _kernel(H, B, T, C, static)(
    *(qu_BTHC, qv_BTHC, dout_BTHC, k_BLHC, v_BLHC, r_HWC, *rows),
    *(tiles_BIS2, *words),
  )
  return ScoreGradients(*found)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  end: int
  start: int
  n_keys: int
  n_rows: int
  rate: float  # of dropout


@functools.cache
def _kernel(H: int, B: int, T: int, C: int, static: _Static) -> Any:
  rate, L, W = static.rate, static.n_keys, static.n_rows
  names = (*(_READ if rate else _READ[:-1]), *_WRITTEN)

  def body(*arrays: Any, **shared: Any) -> None:
    device = SimpleNamespace(**dict(zip(names, arrays, strict=True)))
    _Block(static, device, SimpleNamespace(**shared)).run()

  tile, square = (
    functools.partial(tiles.shared_tile, width) for width in (C, TILE)
  )
  number = functools.partial(plgpu.SMEM, (TILE,))
  return plgpu.kernel(
    body,
    out_type=tuple(
      jax.ShapeDtypeStruct(shape, jnp.bfloat16)
      for shape in ((B, T, H, C), *[(B, H, T, L)] * 2, (H, B, T, W))
    ),
    scratch_types=dict(
      **dict(qu=tile(), qv=tile(), dout=tile(), k=tile(), v=tile(), r=tile()),
      **dict(ring=slant.shared_ring(), draw=square(2)),
      **dict(weight=square(), dscore=square()),
      **dict(first=number(jnp.int32), lse=number(jnp.float32)),
      **dict(mean=number(jnp.float32)),
      **({'words': number(jnp.uint32)} if rate else {}),
      ready=plgpu.Barrier(num_barriers=7),
      loaded=plgpu.Barrier(num_barriers=3),
    ),
    grid=(H, T // TILE, B),
    grid_names=('head', 'queries', 'row'),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


class _Block:
  """A block of the kernel: 64 queries, and the tiles that they see."""

  def __init__(
    self, static: _Static, device: SimpleNamespace, shared: SimpleNamespace
  ):
    """Finds out which block this is.

    Args:
      static: what is known beforehand.
      device: arrays on the device.
      shared: memory of the block.
    """
    self._static, self._device, self._shared = static, device, shared
    block = lax.axis_index('queries')
    self._head, self._row = lax.axis_index('head'), lax.axis_index('row')
    self._queries = pl.ds(block * TILE, TILE)
    # First tile of keys, and the one after the last.
    self._begin = device.tiles[self._row, block, 0, 0]
    self._until = device.tiles[self._row, block, 0, 1]
    # The row of the table where the window of tile 0 begins.
    self._window = static.start - block * TILE
    # The key at the place of the first of the queries.
    self._end = static.end + block * TILE

  def run(self) -> None:
    """Everything."""
    shared = self._shared
    self._fetch_queries()
    tiles.clear(shared.draw.at[0])

    @pl.when(self._begin < self._until)
    def _():
      self._fetch_rows(self._begin)
      plgpu.barrier_wait(shared.loaded.at[0])
      slant.keep(shared.ring, 0, tiles.product(shared.qv, shared.r))
      plgpu.commit_smem()
      self._fetch_rows(self._begin + 1)
      for name in ('k', 'v'):
        self._fetch(name, self._begin)

    zeros = tiles.zeros(shared.qu)
    acc = lax.fori_loop(self._begin, self._until, self._step, zeros)
    self._write_last(acc)

  def _fetch_queries(self) -> None:
    device, shared = self._device, self._shared
    row, head, queries = self._row, self._head, self._queries
    places = {
      **dict.fromkeys(('qu', 'qv', 'dout'), (row, queries, head)),
      **dict.fromkeys(('lse', 'mean'), (head, row, queries)),
      **({'words': (head, row, queries)} if self._static.rate else {}),
      'first': (row, queries),
    }
    pairs = [
      (getattr(device, name).at[*place], getattr(shared, name))
      for name, place in places.items()
    ]
    tiles.fetch(pairs, shared.ready)

  def _fetch_rows(self, at: Any) -> None:
    """Begins to fetch the left half of the window of a tile."""
    rows = pl.ds(self._window + at * TILE, TILE)
    source = self._device.r.at[self._head, rows]
    plgpu.copy_gmem_to_smem(source, self._shared.r, self._shared.loaded.at[0])

  def _fetch(self, name: str, at: Any) -> None:
    """Begins to fetch a tile of keys, `k`, or values, `v`."""
    source, target = (getattr(x, name) for x in (self._device, self._shared))
    source = source.at[*tiles.keys(self._head, self._row, at)]
    loaded = self._shared.loaded.at[{'k': 1, 'v': 2}[name]]
    plgpu.copy_gmem_to_smem(source, target, loaded)

  def _step(self, at: Any, acc: jax.Array) -> jax.Array:
    """Takes in tile number `at`, and writes what it gives."""
    shared, rate = self._shared, self._static.rate
    half, more = lax.rem(at - self._begin, 2), at + 1 < self._until
    plgpu.barrier_wait(shared.loaded.at[0])
    slant.keep(shared.ring, 1 - half, tiles.product(shared.qv, shared.r))
    plgpu.commit_smem()
    pl.when(more)(lambda: self._fetch_rows(at + 2))
    position = slant.slanted(shared.ring, half * TILE)
    plgpu.barrier_wait(shared.loaded.at[1])
    score = tiles.product(shared.qu, shared.k) + position.astype(jnp.float32)
    score = score * math.log2(math.e) - _over_keys(shared.lse)
    seen = tiles.visible(shared.first, self._end, at * TILE)
    weight = jnp.where(seen, jnp.exp2(score), 0.0)
    plgpu.barrier_wait(shared.loaded.at[2])
    slope, used = tiles.product(shared.dout, shared.v), weight
    if rate:
      keep = tiles.kept(shared.words, at * TILE, rate)
      slope, used = (
        jnp.where(keep, x / (1 - rate), 0.0) for x in (slope, weight)
      )
    dscore = (weight * (slope - _over_keys(shared.mean))).astype(jnp.bfloat16)
    # What the tile before has written is on its way, and its room free.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    shared.weight[...] = used.astype(jnp.bfloat16)
    shared.dscore[...] = dscore
    slant.write_slanted(shared.draw, dscore, half * TILE)
    plgpu.commit_smem()
    pl.when(more)(lambda: self._fetch('v', at + 1))
    for name in ('weight', 'dscore'):
      self._write(getattr(shared, name), name, at * TILE)
    # The half of the window that is complete.
    self._write(shared.draw.at[half], 'draw', self._window + at * TILE)
    acc = tiles.add_product(acc, dscore, shared.k)
    # All are done with the keys.
    plgpu.commit_smem()
    pl.when(more)(lambda: self._fetch('k', at + 1))
    return acc

  def _write(self, source: Any, name: str, column: Any) -> None:
    """Begins to write a tile."""
    by_head = name == 'draw'
    lead = (self._head, self._row) if by_head else (self._row, self._head)
    where = *lead, self._queries, pl.ds(column, TILE)
    plgpu.copy_smem_to_gmem(source, getattr(self._device, name).at[*where])

  def _write_last(self, acc: jax.Array) -> None:
    """Writes the queries' gradient, the last half, and zeros for the rest."""
    device, shared, static = self._device, self._shared, self._static
    begin, until = self._begin, self._until
    half = lax.rem(until - begin, 2)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    tiles.clear(shared.weight)
    nothing = tiles.zeros(shared.weight).astype(jnp.bfloat16)
    slant.write_slanted(shared.draw, nothing, half * TILE)
    shared.qu[...] = acc.astype(jnp.bfloat16)
    plgpu.commit_smem()

    def blank(name: str, low: Any, high: Any) -> None:
      @functools.partial(lax.fori_loop, low, high, init_val=None)
      def _(at: Any, _: None) -> None:
        self._write(shared.weight, name, at * TILE)

    dqu = device.dqu.at[self._row, self._queries, self._head]
    plgpu.copy_smem_to_gmem(shared.qu, dqu)
    self._write(shared.draw.at[half], 'draw', self._window + until * TILE)
    for name in ('weight', 'dscore'):
      blank(name, 0, begin)
      blank(name, until, static.n_keys // TILE)
    window = lax.div(self._window, TILE)
    blank('draw', 0, window + begin)
    blank('draw', window + until + 1, static.n_rows // TILE)
    plgpu.wait_smem_to_gmem(0)


def _over_keys(numbers: Any) -> jax.Array:
  """A number for each row, in shared memory, as a tile."""
  return lax.broadcast_in_dim(tiles.load_rows(numbers), (TILE, TILE), [0])
