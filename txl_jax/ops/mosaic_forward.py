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

Both products take the queries with content bias. What the position bias adds to
that, (v - u) . r, is a number for each row of the table.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_dropout
from txl_jax.ops import mosaic_slant as slant
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

_LOWEST = -1e30
# Arrays on the device: what the kernel reads, and what it writes.
_READ = ('qu', 'k', 'v', 'r', 'bias', 'first', 'tiles', 'places', 'words')
_WRITTEN = ('out', 'lse', 'rest')


def forward(
  qu_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  bias_HW: jax.Array,
  first_BT: jax.Array,
  tiles_BIS3: jax.Array,
  places_2: jax.Array,
  words_HBT: jax.Array | None = None,
  *,
  rate: float = 0.0,
  heads_first: bool = False,
  rest: bool = False,
) -> tuple[jax.Array, ...]:
  """What each of S splits attends to.

  Args:
    qu_BTHC: queries with content bias, scaled; T a multiple of 64.
    k_BLHC: keys, L a multiple of 64; [H, B, L, C] if `heads_first`.
    v_BLHC: values, likewise.
    r_HWC: the projected table, with rows for all that a tile may touch.
    bias_HW: float32, its products with what the position bias exceeds the
      content bias by, scaled.
    first_BT: int32, the first key that each query sees.
    tiles_BIS3: the tiles of keys of each split, from `tiles_of`.
    places_2: int32, the key at the place of the first query, and the row of the
      table where the window of queries and keys from 0 begins.
    words_HBT: of dropout's hash; None without dropout.
    rate: share of weights that are dropped.
    heads_first: how the keys lie.
    rest: whether to return what rounding takes from the values.

  Returns:
    Values [S, B, T, H, C], and of each query the logarithm to base 2 of the sum
    of its weights [S, H, B, T]; the rest of the values, if it is asked for.
  """
  B, T, H, C = qu_BTHC.shape
  arrays = (qu_BTHC, k_BLHC, v_BLHC, r_HWC, bias_HW, first_BT, tiles_BIS3)
  words = () if words_HBT is None else (words_HBT,)
  static = _Static(tiles_BIS3.shape[2], rate, heads_first, rest)
  kernel = _kernel(H, B, T, C, static)
  return kernel(*arrays, places_2, *words)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  n_splits: int
  rate: float  # of dropout
  heads_first: bool
  rest: bool


@functools.cache
def _kernel(H: int, B: int, T: int, C: int, static: _Static) -> Any:
  n_splits, rate = static.n_splits, static.rate
  written = _WRITTEN if static.rest else _WRITTEN[:-1]
  names = (*(_READ if rate else _READ[:-1]), *written)
  values = jax.ShapeDtypeStruct((n_splits, B, T, H, C), jnp.bfloat16)
  tile = functools.partial(tiles.shared_tile, C)
  return plgpu.kernel(
    _Block.body(static, names),
    out_type=(
      values,
      jax.ShapeDtypeStruct((n_splits, H, B, T), jnp.float32),
      *([values] if static.rest else []),
    ),
    scratch_types=dict(
      **dict(qu=tile(), k=tile(2), r=tile(), v=tile()),
      ring=slant.shared_ring(),
      first=plgpu.SMEM((TILE,), jnp.int32),
      **({'words': plgpu.SMEM((TILE,), jnp.uint32)} if rate else {}),
      bias=plgpu.SMEM((2, TILE), jnp.float32),
      ready=plgpu.Barrier(num_arrivals=3 if rate else 2),
      **{name: plgpu.Barrier(num_arrivals=2) for name in ('before', 'rows')},
      values=plgpu.Barrier(),
      keys=plgpu.Barrier(num_barriers=2),
    ),
    grid=(H, T // TILE, B * n_splits),
    grid_names=('head', 'queries', 'row'),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.HeadBlock):
  """A block of the kernel: 64 queries, and the tiles of a split."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    static, device = self._static, self._device
    block, row = lax.axis_index('queries'), self._row
    self._queries = pl.ds(block * TILE, TILE)
    self._row = lax.div(row, static.n_splits)
    self._split = lax.rem(row, static.n_splits)
    found = [device.tiles[self._row, block, self._split, n] for n in range(3)]
    self._begin, self._until, self._whole = found
    # The key at the place of the first query.
    self._end = device.places[0] + block * TILE
    # The row of the table where the window of tile 0 begins.
    self._window = device.places[1] - block * TILE

  def run(self) -> None:
    """Everything."""
    shared, device = self._shared, self._device
    row, head, queries = self._row, self._head, self._queries
    some = self._begin < self._until
    self._fetch_queries()
    pl.when(some)(self._fetch_first)
    plgpu.barrier_wait(shared.ready)
    pl.when(some)(self._begin_window)

    # Above the lowest, so that a query that sees nothing has no weights.
    state = tiles.rows_of(_LOWEST / 2), tiles.rows_of(0.0)
    state = *state, tiles.zeros(shared.qu)
    state = lax.fori_loop(self._begin, self._until, self._step, state)
    self._put_result(*state)
    place = self._split, row, queries, head
    plgpu.copy_smem_to_gmem(shared.qu, device.out.at[*place])
    if self._static.rest:
      plgpu.copy_smem_to_gmem(shared.k.at[0], device.rest.at[*place])
    lse = device.lse.at[self._split, head, row, queries]
    plgpu.copy_smem_to_gmem(shared.bias.at[0], lse)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  def _fetch_queries(self) -> None:
    """Begins to fetch the queries and what belongs to them."""
    device, shared = self._device, self._shared
    row, head, queries = self._row, self._head, self._queries
    ready = shared.ready
    plgpu.copy_gmem_to_smem(device.qu.at[row, queries, head], shared.qu, ready)
    plgpu.copy_gmem_to_smem(device.first.at[row, queries], shared.first, ready)
    if self._static.rate:
      words = device.words.at[head, row, queries]
      plgpu.copy_gmem_to_smem(words, shared.words, ready)

  def _fetch_first(self) -> None:
    """Begins to fetch all that the first tile needs, but its values."""
    shared = self._shared
    # To the values' room, for the time being.
    self._fetch_rows(self._begin, shared.v, 1, shared.before)
    self._fetch_rows(self._begin + 1, shared.r, 0, shared.rows)
    for n in range(2):
      self._fetch_keys(self._begin + n)

  def _begin_window(self) -> None:
    """Multiplies with the left half of the first window."""
    shared = self._shared
    plgpu.barrier_wait(shared.before)
    pair = shared.qu, shared.v
    tiles.with_products([pair], functools.partial(self._keep, 0, 1))
    tiles.meet()
    self._fetch_values(self._begin)

  def _fetch_rows(self, at: Any, target: Any, slot: Any, barrier: Any) -> None:
    """Begins to fetch the left half of the window of a tile, and its biases."""
    device, rows = self._device, pl.ds(self._window + at * TILE, TILE)
    plgpu.copy_gmem_to_smem(device.r.at[self._head, rows], target, barrier)
    bias = self._shared.bias.at[slot]
    plgpu.copy_gmem_to_smem(device.bias.at[self._head, rows], bias, barrier)

  def _fetch_keys(self, at: Any) -> None:
    """Begins to fetch a tile of keys, if it is there."""

    @pl.when(at < self._until)
    def _():
      stage = lax.rem(at - self._begin, 2)
      keys = self._device.k.at[*self._place(at)]
      target = self._shared.k.at[stage]
      plgpu.copy_gmem_to_smem(keys, target, self._shared.keys.at[stage])

  def _fetch_values(self, at: Any) -> None:
    """Likewise a tile of values."""

    @pl.when(at < self._until)
    def _():
      values = self._device.v.at[*self._place(at)]
      plgpu.copy_gmem_to_smem(values, self._shared.v, self._shared.values)

  def _place(self, at: Any) -> tuple:
    """Where tile number `at` is, of keys and of values."""
    some = pl.ds(at * TILE, TILE)
    if self._static.heads_first:
      return self._head, self._row, some
    return self._row, some, self._head

  def _keep(self, half: Any, slot: Any, result: Any) -> None:
    """Writes products of the queries with rows of the table to the ring."""
    raw = result(0)
    bias = tiles.in_each_row(self._shared.bias.at[slot])
    slant.keep(self._shared.ring, half, raw + bias)

  def _step(self, at: Any, state: tuple) -> tuple:
    """Takes in a tile: maximum, sum and weighted values of each row."""
    most, total, acc = state
    shared, rate = self._shared, self._static.rate
    score = self._score(at)
    more = jnp.maximum(most, score.max(axis=1))
    fade = jnp.exp2(most - more)
    weight = jnp.exp2(score - lax.broadcast_in_dim(more, score.shape, [0]))
    total = total * fade + weight.sum(axis=1)
    if rate:
      keep = mosaic_dropout.kept(shared.words, at * TILE, rate)
      weight = jnp.where(keep, weight, 0.0)
    acc *= lax.broadcast_in_dim(fade, acc.shape, [0])
    plgpu.barrier_wait(shared.values)
    term = acc, weight.astype(jnp.bfloat16), shared.v
    (acc,) = tiles.add_products(term)
    # All are done with keys and values.
    tiles.meet()
    self._fetch_values(at + 1)
    self._fetch_keys(at + 2)
    return more, total, acc

  def _score(self, at: Any) -> jax.Array:
    """Scores to base 2; the lowest where nothing is seen."""
    shared = self._shared
    stage = lax.rem(at - self._begin, 2)
    plgpu.barrier_wait(shared.rows)
    plgpu.barrier_wait(shared.keys.at[stage])

    def run(result: Any) -> jax.Array:
      self._keep(1 - stage, 0, result)
      tiles.meet()

      @pl.when(at + 1 < self._until)
      def _():
        self._fetch_rows(at + 2, shared.r, 0, shared.rows)

      position = slant.slanted(shared.ring, stage * TILE).astype(jnp.float32)
      return (result(1) + position) * math.log2(math.e)

    pairs = [(shared.qu, shared.r), (shared.qu, shared.k.at[stage])]
    score = tiles.with_products(pairs, run)

    def hide(score: jax.Array) -> jax.Array:
      seen = tiles.visible(shared.first, self._end, at * TILE)
      return jnp.where(seen, score, _LOWEST)

    whole = (at >= self._whole) & (at * TILE + TILE <= self._end + 1)
    return lax.cond(whole, lambda score: score, hide, score)

  def _put_result(
    self, most: jax.Array, total: jax.Array, acc: jax.Array
  ) -> None:
    """Puts the result where queries, keys and biases were."""
    shared = self._shared
    total = jnp.maximum(total, 1e-30)
    inverse = 1 / (total * (1 - self._static.rate))
    acc *= lax.broadcast_in_dim(inverse, acc.shape, [0])
    out = acc.astype(jnp.bfloat16)
    shared.qu[...] = out
    if self._static.rest:
      shared.k[0] = (acc - out.astype(jnp.float32)).astype(jnp.bfloat16)
    shared.bias[0] = most + jnp.log2(total)
    plgpu.commit_smem()
