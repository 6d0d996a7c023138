"""The backward pass of relative attention for keys and values, on Hopper.

A block takes 64 keys of a row and head, and goes through the blocks of 64
queries that see them. It computes the weights again, from the logarithm of
their sum that the forward pass kept, and adds up the gradients of keys and
values. Its tiles have a row for each key, so that weights and gradients of the
scores go from the registers where they are computed into the next product. What
it writes of the size of the scores are their gradients, once, in bfloat16.

The products of the queries with the 128 rows of the table that meet the tile
lie in shared memory, and are read along a slant. From one block of queries to
the next the window moves by 64 rows: half of it is there already.
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
from txl_jax.ops.mosaic_ranges import query_ranges
from txl_jax.ops.mosaic_tiles import TILE

_LOWEST = -1e30
# Arrays on the device: what the kernel reads, and what it writes.
_READ = ('qu', 'dout', 'k', 'v', 'r', 'bias', 'numbers', 'tiles', 'ranges')
_ARRAYS = (*_READ, 'dk', 'dv', 'dscore')
# Numbers of each query, in one array so that they come at once.
_NUMBERS = dict(
  lse=jnp.float32, mean=jnp.float32, first=jnp.int32, words=jnp.uint32
)


def key_gradients(
  qu_BTHC: jax.Array,
  dout_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  bias_HW: jax.Array,
  first_BT: jax.Array,
  lse_HBT: jax.Array,
  mean_HBT: jax.Array,
  tiles_BIS3: jax.Array,
  words_HBT: jax.Array | None = None,
  *,
  end: int,
  start: int,
  rate: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients of keys, values and scores.

  Args:
    qu_BTHC: queries with content bias, scaled; T a multiple of 64.
    dout_BTHC: gradient of the result.
    k_BLHC: keys, L a multiple of 64.
    v_BLHC: values.
    r_HWC: the projected table, W a multiple of 64.
    bias_HW: float32, what the position bias adds to each row's products.
    first_BT: int32, the first key that each query sees.
    lse_HBT: float32, from `forward`.
    mean_HBT: float32, the mean of the weights' gradients, weighted by them.
    tiles_BIS3: from `tiles_of`, of a single split.
    words_HBT: of dropout's hash; None without dropout.
    end: the key at the place of the first query.
    start: the row of the table, a multiple of 64, where the window of queries
      and keys from 0 begins.
    rate: share of weights that are dropped.

  Returns:
    Those of keys and values [B, L, H, C], and of the scores [B, H, L, T]: only
    the tiles that some query sees are written.
  """
  B, T, H, C = qu_BTHC.shape
  L = k_BLHC.shape[1]
  numbers = [lse_HBT, mean_HBT, jnp.broadcast_to(first_BT, (H, B, T))]
  numbers += [] if words_HBT is None else [words_HBT]
  # Else XLA would sum up the means where it stacks, several times as slow.
  numbers = lax.optimization_barrier(numbers)
  numbers_HBXT = jnp.stack([_bits(x, jnp.uint32) for x in numbers], axis=2)
  ranges_BJ2 = query_ranges(tiles_BIS3, L // TILE)
  return _kernel(H, B, T, L, C, _Static(end, start, rate))(
    *(qu_BTHC, dout_BTHC, k_BLHC, v_BLHC, r_HWC, bias_HW, numbers_HBXT),
    *(tiles_BIS3, ranges_BJ2),
  )


def _bits(x: jax.Array, dtype: Any) -> jax.Array:
  return lax.bitcast_convert_type(x, dtype)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  end: int
  start: int
  rate: float  # of dropout


@functools.cache
def _kernel(H: int, B: int, T: int, L: int, C: int, static: _Static) -> Any:
  tile = functools.partial(tiles.shared_tile, C)
  n_numbers = len(_NUMBERS) if static.rate else len(_NUMBERS) - 1
  return plgpu.kernel(
    _Block.body(static, _ARRAYS),
    out_type=(
      *[jax.ShapeDtypeStruct((B, L, H, C), jnp.bfloat16)] * 2,
      jax.ShapeDtypeStruct((B, H, L, T), jnp.bfloat16),
    ),
    scratch_types=dict(
      **dict(k=tile(), v=tile(), qu=tile(2), dout=tile(2), r=tile(2)),
      **dict(ring=slant.shared_ring(), dscore=tiles.shared_tile(TILE)),
      numbers=plgpu.SMEM((2, n_numbers, TILE), jnp.uint32),
      bias=plgpu.SMEM((2, TILE), jnp.float32),
      ready=plgpu.Barrier(num_arrivals=2),
      rows=plgpu.Barrier(num_arrivals=2, num_barriers=2),
      loaded=plgpu.Barrier(num_arrivals=3, num_barriers=2),
    ),
    grid=(H, L // TILE, B),
    grid_names=('head', 'keys', 'row'),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.HeadBlock):
  """A block of the kernel: 64 keys, and the queries that see them."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    device, block = self._device, lax.axis_index('keys')
    self._key, self._keys = block * TILE, pl.ds(block * TILE, TILE)
    self._low = device.ranges[self._row, block, 0]
    self._high = device.ranges[self._row, block, 1]

  def run(self) -> None:
    """Everything."""
    shared, device = self._shared, self._device

    @pl.when(self._low < self._high)
    def _():
      for name in ('k', 'v'):
        source = getattr(device, name).at[self._row, self._keys, self._head]
        plgpu.copy_gmem_to_smem(source, getattr(shared, name), shared.ready)
      # The right half of the first window lies where the second's left will.
      self._fetch_rows(self._low - 1, 1)
      self._fetch_rows(self._low, 0)
      self._fetch_queries(self._low)
      self._fetch_queries(self._low + 1)
      plgpu.barrier_wait(shared.ready)
      plgpu.barrier_wait(shared.rows.at[1])

    zeros = (tiles.zeros(shared.k),) * 2
    dk, dv = lax.fori_loop(self._low, self._high, self._step, zeros)
    shared.k[...] = dk.astype(jnp.bfloat16)
    shared.v[...] = (dv / (1 - self._static.rate)).astype(jnp.bfloat16)
    plgpu.commit_smem()
    for source, target in ((shared.k, device.dk), (shared.v, device.dv)):
      target = target.at[self._row, self._keys, self._head]
      plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  def _window(self, at: Any) -> Any:
    """The row of the table where the window of a block of queries begins."""
    return self._static.start + self._key - at * TILE

  def _fetch_rows(self, at: Any, half: Any) -> None:
    """Begins to fetch the left half of the window of a block of queries."""
    rows, shared = pl.ds(self._window(at), TILE), self._shared
    for name in ('r', 'bias'):
      source = getattr(self._device, name).at[self._head, rows]
      target = getattr(shared, name).at[half]
      plgpu.copy_gmem_to_smem(source, target, shared.rows.at[half])

  def _fetch_queries(self, at: Any) -> None:
    """Begins to fetch a block of queries and their numbers, if it is there."""
    head, row, queries = self._head, self._row, pl.ds(at * TILE, TILE)
    places = {
      **dict.fromkeys(('qu', 'dout'), (row, queries, head)),
      'numbers': (head, row, slice(None), queries),
    }
    stage = lax.rem(at - self._low, 2)

    @pl.when(at < self._high)
    def _():
      for name, place in places.items():
        source = getattr(self._device, name).at[*place]
        target = getattr(self._shared, name).at[stage]
        plgpu.copy_gmem_to_smem(source, target, self._shared.loaded.at[stage])

  def _step(self, at: Any, sums: tuple) -> tuple[jax.Array, ...]:
    """Takes in block number `at` of the queries."""
    shared, stage = self._shared, lax.rem(at - self._low, 2)
    dk, dv = sums
    plgpu.barrier_wait(shared.loaded.at[stage])
    plgpu.barrier_wait(shared.rows.at[stage])
    self._multiply_with_table(stage)
    # What the step before has written is on its way, and its room free.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    tiles.meet()
    more = at + 1 < self._high
    pl.when(more)(lambda: self._fetch_rows(at + 1, 1 - stage))
    used, dscore = self._gradients(at, stage)
    shared.dscore[...] = dscore
    plgpu.commit_smem()
    queries = pl.ds(at * TILE, TILE)
    target = self._device.dscore.at[self._row, self._head, self._keys, queries]
    plgpu.copy_smem_to_gmem(shared.dscore, target)
    dv, dk = tiles.add_products(
      (dv, used, shared.dout.at[stage]), (dk, dscore, shared.qu.at[stage])
    )
    # All are done with the queries.
    tiles.meet()
    self._fetch_queries(at + 2)
    return dk, dv

  def _multiply_with_table(self, stage: Any) -> None:
    """Writes the products of the queries with the window to the ring."""
    shared, halves = self._shared, (stage, 1 - stage)

    def run(result: Any) -> None:
      for n, half in enumerate(halves):
        raw = result(n) + tiles.in_each_row(shared.bias.at[half])
        slant.keep(shared.ring, n, raw)

    queries = shared.qu.at[stage]
    tiles.with_products([(queries, shared.r.at[half]) for half in halves], run)

  def _number(self, name: str, stage: Any) -> jax.Array:
    """A number of each query, in all rows of a tile."""
    numbers = self._shared.numbers.at[stage, list(_NUMBERS).index(name)]
    return _bits(tiles.in_each_row(numbers), _NUMBERS[name])

  def _gradients(self, at: Any, stage: Any) -> tuple[jax.Array, jax.Array]:
    """The weights as they are used, and the gradients of the scores."""
    shared, rate = self._shared, self._static.rate

    def run(result: Any) -> tuple[jax.Array, jax.Array]:
      position = slant.turned(shared.ring).astype(jnp.float32)
      score = (result(0) + position) * math.log2(math.e)
      score = self._hidden(at, stage, score - self._number('lse', stage))
      weight = jnp.exp2(score)
      slope, used = result(1), weight
      if rate:
        words = self._number('words', stage)
        keep = mosaic_dropout.kept_by_key(words, self._key, rate)
        slope = jnp.where(keep, slope / (1 - rate), 0.0)
        used = jnp.where(keep, weight, 0.0)
      dscore = weight * (slope - self._number('mean', stage))
      return used.astype(jnp.bfloat16), dscore.astype(jnp.bfloat16)

    pairs = (shared.k, shared.qu.at[stage]), (shared.v, shared.dout.at[stage])
    return tiles.with_products(pairs, run)

  def _hidden(self, at: Any, stage: Any, score: jax.Array) -> jax.Array:
    """The lowest where a query does not see a key."""
    end = self._static.end + at * TILE

    def hide(score: jax.Array) -> jax.Array:
      first = self._number('first', stage)
      seen = tiles.visible_by_key(first, end, self._key)
      return jnp.where(seen, score, _LOWEST)

    whole = self._device.tiles[self._row, at, 0, 2] * TILE <= self._key
    whole &= self._key + TILE <= end + 1
    return lax.cond(whole, lambda score: score, hide, score)
