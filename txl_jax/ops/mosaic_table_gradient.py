"""The backward pass of relative attention for the table, on Hopper.

The window of a tile of keys and a block of queries depends on the difference of
their numbers alone. A block of this kernel takes one window, 128 rows of the
table, and goes through all tiles that meet it, of some rows of the batch. It
reads the gradients of their scores along the slant, and adds up their products
with the queries, for the left half of the window and for the right one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_slant as slant
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import MULTIPROCESSORS
from txl_jax.ops.mosaic_tiles import TILE

# Tiles at once.
_STAGES = 3
# Blocks at once: two on each processor of a card.
_AT_ONCE = 2 * MULTIPROCESSORS
# Arrays on the device: what the kernel reads, and what it writes.
_ARRAYS = ('dscore', 'qv', 'tiles', 'products')


def table_gradient(
  dscore_BHLT: jax.Array,
  qv_BTHC: jax.Array,
  tiles_BIS3: jax.Array,
  n_rows: int,
) -> jax.Array:
  """The gradient of the projected table, float32 [H, W, C].

  Args:
    dscore_BHLT: from `key_gradients`; L and T are multiples of 64.
    qv_BTHC: queries with position bias, scaled.
    tiles_BIS3: from `tiles_of`, of a single split.
    n_rows: W, a multiple of 64. The window of queries and keys from 0 begins 64
      rows before row T.
  """
  B, H, L, T = dscore_BHLT.shape
  C, n_windows = qv_BTHC.shape[-1], n_rows // TILE - 1
  n_splits = min(-(-_AT_ONCE // (H * n_windows)), B)
  static = _Static(B, T // TILE, L // TILE, n_windows, -(-B // n_splits))
  kernel = _kernel(n_splits, H, C, static)
  parts_SHN2XC = kernel(dscore_BHLT, qv_BTHC, tiles_BIS3)
  halves_HN2XC = parts_SHN2XC.sum(0, dtype=jnp.float32)
  left, right = (
    jnp.pad(halves_HN2XC[:, :, n], ((0, 0), (n, 1 - n), (0, 0), (0, 0)))
    for n in range(2)
  )
  return (left + right).reshape(H, n_rows, C)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  n_batch: int
  n_blocks: int  # of queries
  n_tiles: int  # of keys
  n_windows: int
  n_each: int  # rows of the batch, for one block of the kernel


@functools.cache
def _kernel(n_splits: int, H: int, C: int, static: _Static) -> Any:
  shape = n_splits, H, static.n_windows, 2, TILE
  return plgpu.kernel(
    _Block.body(static, _ARRAYS),
    out_type=jax.ShapeDtypeStruct((*shape, C), jnp.bfloat16),
    scratch_types=dict(
      dscore=tiles.shared_tile(TILE, _STAGES),
      qv=tiles.shared_tile(C, _STAGES),
      product=tiles.shared_tile(C),
      loaded=plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
    ),
    grid=(H, static.n_windows, n_splits),
    grid_names=('head', 'window', 'row'),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.HeadBlock):
  """A block of the kernel: a window of the table, and what meets it."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    static = self._static
    # The last ones first: they meet the most tiles.
    self._window = static.n_windows - 1 - lax.axis_index('window')
    # From the number of a block of queries to that of its tile of keys.
    self._shift = self._window - (static.n_blocks - 1)
    self._low = jnp.maximum(0, -self._shift)
    high = jnp.minimum(static.n_blocks, static.n_tiles - self._shift)
    self._n_pairs = high - self._low
    self._first = self._row * static.n_each
    until = jnp.minimum(self._first + static.n_each, static.n_batch)
    self._count = (until - self._first) * self._n_pairs

  def run(self) -> None:
    """Everything."""
    shared = self._shared
    for n in range(_STAGES):
      self._fetch(n)
    zeros = (tiles.zeros(shared.product),) * 2
    for n, acc in enumerate(lax.fori_loop(0, self._count, self._step, zeros)):
      shared.product[...] = acc.astype(jnp.bfloat16)
      plgpu.commit_smem()
      place = self._row, self._head, self._window, n
      plgpu.copy_smem_to_gmem(shared.product, self._device.products.at[*place])
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  def _stage(self, at: Any) -> Any:
    return lax.rem(at, _STAGES)

  def _pair(self, at: Any) -> tuple[Any, Any, Any]:
    """Of pair number `at` the row, and the numbers of queries and keys."""
    block = self._low + lax.rem(at, self._n_pairs)
    row = self._first + lax.div(at, self._n_pairs)
    return row, block, block + self._shift

  def _is_seen(self, at: Any) -> Any:
    row, block, tile = self._pair(at)
    begin, until = (self._device.tiles[row, block, 0, n] for n in range(2))
    return (begin <= tile) & (tile < until)

  def _fetch(self, at: Any) -> None:
    """Begins to fetch a pair, if it is there and some query sees some key."""
    device, shared, stage = self._device, self._shared, self._stage(at)

    def fetch() -> None:
      row, block, tile = self._pair(at)
      queries, keys = (pl.ds(n * TILE, TILE) for n in (block, tile))
      loaded = shared.loaded.at[stage]
      dscore = device.dscore.at[row, self._head, keys, queries]
      plgpu.copy_gmem_to_smem(dscore, shared.dscore.at[stage], loaded)
      qv = device.qv.at[row, queries, self._head]
      plgpu.copy_gmem_to_smem(qv, shared.qv.at[stage], loaded)

    @pl.when(at < self._count)
    def _():
      pl.when(self._is_seen(at))(fetch)

  def _step(self, at: Any, found: tuple) -> tuple[jax.Array, ...]:
    """Takes in pair number `at`."""
    found = lax.cond(
      self._is_seen(at), functools.partial(self._add, at), lambda *x: x, *found
    )
    # All are done with this stage.
    tiles.meet()
    self._fetch(at + _STAGES)
    return found

  def _add(self, at: Any, *found: jax.Array) -> tuple[jax.Array, ...]:
    shared, stage = self._shared, self._stage(at)
    plgpu.barrier_wait(shared.loaded.at[stage])
    along = slant.folded(shared.dscore.at[stage], by_row=True)
    nothing = tiles.zeros(shared.dscore.at[stage], jnp.bfloat16)
    halves = slant.joined(along, nothing), slant.joined(nothing, along)
    queries = shared.qv.at[stage]
    return tiles.add_products(
      *((acc, half, queries) for acc, half in zip(found, halves))
    )
