"""The backward pass of relative attention for queries, on Hopper.

A block takes 64 queries of a row and head, and goes through the tiles of keys
that they see, as the forward kernel does. It reads the gradients of the scores
that the kernel for keys has written, a row for each key, and adds up those of
the queries: by way of the keys, and by way of the table. For the latter it
reads the tile along the slant: what lies in the left half of its window, with
what of the tile before lay in the right half of its own, is multiplied with 64
rows of the table. The gradients of the biases are sums over those of queries: a
block leaves its own, of what is not rounded yet.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_products as products
from txl_jax.ops import mosaic_slant as slant
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

# Tiles at once, by the width of heads: as many as leave room for other blocks.
_STAGES = {64: 3, 128: 2}
# Arrays on the device: what the kernel reads, and what it writes.
_ARRAYS = ('dscore', 'k', 'r', 'tiles', 'dq', 'sums')


def query_gradients(
  dscore_BHLT: jax.Array,
  k_BLHC: jax.Array,
  r_HWC: jax.Array,
  tiles_BIS3: jax.Array,
  *,
  start: int,
  scale: float,
) -> tuple[jax.Array, jax.Array]:
  """The gradient of queries, and its sums.

  Args:
    dscore_BHLT: from `key_gradients`; L and T are multiples of 64.
    k_BLHC: keys.
    r_HWC: the projected table, W a multiple of 64.
    tiles_BIS3: from `tiles_of`, of a single split.
    start: the row of the table, a multiple of 64, where the window of queries
      and keys from 0 begins.
    scale: of the queries.

  Returns:
    The gradient [B, T, H, C], and for each block of queries two sums of it,
    float32 [2, B, T / 64, H, C]: of what comes through the keys, and of what
    comes through the table.
  """
  B, H, _, T = dscore_BHLT.shape
  C = k_BLHC.shape[-1]
  static = _Static(start, scale, _STAGES[C])
  kernel = _kernel(H, B, T, C, static)
  return kernel(dscore_BHLT, k_BLHC, r_HWC, tiles_BIS3)


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  start: int
  scale: float
  n_stages: int


@functools.cache
def _kernel(H: int, B: int, T: int, C: int, static: _Static) -> Any:
  n_stages = static.n_stages
  tile, square = (
    functools.partial(tiles.shared_tile, width) for width in (C, TILE)
  )
  return plgpu.kernel(
    _Block.body(static, _ARRAYS),
    out_type=[
      jax.ShapeDtypeStruct((B, T, H, C), jnp.bfloat16),
      jax.ShapeDtypeStruct((2, B, T // TILE, H, C), jnp.float32),
    ],
    scratch_types=dict(
      **dict(dscore=square(n_stages), k=tile(n_stages), r=tile(n_stages)),
      sums=plgpu.SMEM((2, C), jnp.float32),
      # What each of four warps adds up.
      of_warps=plgpu.SMEM((4 * C,), jnp.float32),
      loaded=plgpu.Barrier(num_arrivals=2, num_barriers=n_stages),
      rows=plgpu.Barrier(num_barriers=n_stages),
    ),
    grid=(H, T // TILE, B),
    grid_names=('head', 'queries', 'row'),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.HeadBlock):
  """A block of the kernel: 64 queries, and the tiles that they see."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    static, device = self._static, self._device
    block = lax.axis_index('queries')
    self._block, self._queries = block, pl.ds(block * TILE, TILE)
    # First tile of keys, and the one after the last.
    self._begin, self._until = (
      device.tiles[self._row, block, 0, n] for n in range(2)
    )
    # The row of the table where the window of tile 0 begins.
    self._window = static.start - block * TILE

  def run(self) -> None:
    """Everything."""
    for n in range(self._static.n_stages):
      self._fetch(self._begin + n)
    before = tiles.zeros(self._shared.dscore.at[0], jnp.bfloat16)
    zeros = tiles.zeros(self._shared.k.at[0])
    state = zeros, zeros, before
    state = lax.fori_loop(self._begin, self._until, self._step, state)
    self._write(*state)

  def _stage(self, at: Any) -> Any:
    return lax.rem(at - self._begin, self._static.n_stages)

  def _fetch(self, at: Any) -> None:
    """Begins to fetch a tile, and the left half of its window."""
    device, shared = self._device, self._shared
    stage = self._stage(at)
    keys = pl.ds(at * TILE, TILE)

    @pl.when(at < self._until)
    def _():
      dscore = device.dscore.at[self._row, self._head, keys, self._queries]
      loaded = shared.loaded.at[stage]
      plgpu.copy_gmem_to_smem(dscore, shared.dscore.at[stage], loaded)
      k = device.k.at[self._row, keys, self._head]
      plgpu.copy_gmem_to_smem(k, shared.k.at[stage], loaded)

    # Behind the last tile there is the right half of its window.
    @pl.when(at <= self._until)
    def _():
      rows = device.r.at[self._head, pl.ds(self._window + at * TILE, TILE)]
      target = shared.r.at[stage]
      plgpu.copy_gmem_to_smem(rows, target, shared.rows.at[stage])

  def _step(self, at: Any, state: tuple) -> tuple[jax.Array, ...]:
    """Takes in tile number `at`."""
    shared, stage = self._shared, self._stage(at)
    dqu, dqv, before = state
    plgpu.barrier_wait(shared.loaded.at[stage])
    dscore = shared.dscore.at[stage]
    along = slant.folded(dscore)
    plgpu.barrier_wait(shared.rows.at[stage])
    dqu, dqv = tiles.add_products(
      (dqu, tiles.Turned(dscore), shared.k.at[stage]),
      (dqv, slant.joined(along, before), shared.r.at[stage]),
    )
    # All are done with this stage.
    tiles.meet()
    self._fetch(at + self._static.n_stages)
    return dqu, dqv, along

  def _write(self, dqu: jax.Array, dqv: jax.Array, before: jax.Array) -> None:
    """Adds what is left of the last tile, and writes the gradients."""
    device, shared, stage = self._device, self._shared, self._stage(self._until)
    plgpu.barrier_wait(shared.rows.at[stage])
    nothing = tiles.zeros(shared.dscore.at[0], jnp.bfloat16)
    term = dqv, slant.joined(nothing, before), shared.r.at[stage]
    (dqv,) = tiles.add_products(term)
    scale = self._static.scale
    for n, x in enumerate((dqu, dqv)):
      shared.sums[n] = products.column_sums(x * scale, shared.of_warps)
    shared.k[0] = ((dqu + dqv) * scale).astype(jnp.bfloat16)
    plgpu.commit_smem()
    dq = device.dq.at[self._row, self._queries, self._head]
    plgpu.copy_smem_to_gmem(shared.k.at[0], dq)
    for n in range(2):
      sums = device.sums.at[n, self._row, self._block, self._head]
      plgpu.copy_smem_to_gmem(shared.sums.at[n], sums)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
