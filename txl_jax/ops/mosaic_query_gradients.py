"""The backward pass of relative attention for queries, on Hopper.

A block takes 64 queries of a row and head, and goes through the tiles of keys
that they see, as the forward kernel does. It reads the gradients of the scores
that the kernel for keys has written, a row for each key, and adds up those of
the queries: by way of the keys, and by way of the table. For the latter query i
of a tile has its 64 numbers from column 63 - i of the window on: they are
written along the slant that the forward pass reads along. Half of the columns
are complete then, and go into the product; the others are once the next tile is
written. They also go to memory, for the gradient of the table.
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
from txl_jax.ops.mosaic_tiles import TILE

# Arrays on the device: what the kernel reads, and what it writes.
_ARRAYS = ('dscore', 'k', 'r', 'tiles', 'dq', 'dqv', 'draw')


class QueryGradients(NamedTuple):
  """What the kernel writes.

  Attributes:
    dq_BTHC: gradient of the queries.
    dqv_BTHC: the part of it that comes by way of the table.
    draw_HBTW: gradients of the scores by row of the table; 0 where no query
      sees.
  """

  dq_BTHC: jax.Array
  dqv_BTHC: jax.Array
  draw_HBTW: jax.Array


def query_gradients(
  dscore_BHLT: jax.Array,
  k_BLHC: jax.Array,
  r_HWC: jax.Array,
  tiles_BIS3: jax.Array,
  *,
  start: int,
  scale: float,
) -> QueryGradients:
  """The gradients of queries, and of the scores by row of the table.

  Args:
    dscore_BHLT: from `key_gradients`; L and T are multiples of 64.
    k_BLHC: keys.
    r_HWC: the projected table, W a multiple of 64.
    tiles_BIS3: from `tiles_of`, of a single split.
    start: the row of the table, a multiple of 64, where the window of queries
      and keys from 0 begins.
    scale: of the queries.
  """
  B, H, _, T = dscore_BHLT.shape
  static = _Static(start, r_HWC.shape[1], scale)
  kernel = _kernel(H, B, T, k_BLHC.shape[-1], static)
  return QueryGradients(*kernel(dscore_BHLT, k_BLHC, r_HWC, tiles_BIS3))


class _Static(NamedTuple):
  """What is known when the kernel is compiled."""

  start: int
  n_rows: int
  scale: float


@functools.cache
def _kernel(H: int, B: int, T: int, C: int, static: _Static) -> Any:
  tile, square = (
    functools.partial(tiles.shared_tile, width) for width in (C, TILE)
  )
  return plgpu.kernel(
    _Block.body(static, _ARRAYS),
    out_type=(
      *[jax.ShapeDtypeStruct((B, T, H, C), jnp.bfloat16)] * 2,
      jax.ShapeDtypeStruct((H, B, T, static.n_rows), jnp.bfloat16),
    ),
    scratch_types=dict(
      **dict(dscore=square(2), k=tile(2), r=tile(2), draw=square(2)),
      loaded=plgpu.Barrier(num_arrivals=2, num_barriers=2),
      rows=plgpu.Barrier(num_barriers=2),
    ),
    grid=(H, T // TILE, B),
    grid_names=('head', 'queries', 'row'),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.Block):
  """A block of the kernel: 64 queries, and the tiles that they see."""

  def __init__(self, *given: Any):
    super().__init__(*given)
    static, device = self._static, self._device
    block = lax.axis_index('queries')
    self._queries = pl.ds(block * TILE, TILE)
    # First tile of keys, and the one after the last.
    self._begin, self._until = (
      device.tiles[self._row, block, 0, n] for n in range(2)
    )
    # The row of the table where the window of tile 0 begins.
    self._window = static.start - block * TILE

  def run(self) -> None:
    """Everything."""
    shared = self._shared
    for n in range(2):
      self._fetch(self._begin + n)
    tiles.clear(shared.draw.at[0])
    plgpu.commit_smem()
    zeros = (tiles.zeros(shared.k.at[0]),) * 2
    sums = lax.fori_loop(self._begin, self._until, self._step, zeros)
    self._write_last(*sums)

  def _fetch(self, at: Any) -> None:
    """Begins to fetch a tile, and the left half of its window."""
    device, shared = self._device, self._shared
    stage = lax.rem(at - self._begin, 2)
    keys = tiles.keys(self._head, self._row, at)

    @pl.when(at < self._until)
    def _():
      dscore = device.dscore.at[self._row, self._head, keys[1], self._queries]
      loaded = shared.loaded.at[stage]
      plgpu.copy_gmem_to_smem(dscore, shared.dscore.at[stage], loaded)
      plgpu.copy_gmem_to_smem(device.k.at[*keys], shared.k.at[stage], loaded)

    # Behind the last tile there is the right half of its window.
    @pl.when(at <= self._until)
    def _():
      rows = device.r.at[self._head, pl.ds(self._window + at * TILE, TILE)]
      target = shared.r.at[stage]
      plgpu.copy_gmem_to_smem(rows, target, shared.rows.at[stage])

  def _step(self, at: Any, sums: tuple) -> tuple[jax.Array, ...]:
    """Takes in tile number `at`."""
    shared, stage = self._shared, lax.rem(at - self._begin, 2)
    plgpu.barrier_wait(shared.loaded.at[stage])
    dscore = tiles.load(shared.dscore.at[stage])
    # What the tile before has written is on its way, and its room free.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    slant.write_turned(shared.draw, dscore, stage * TILE)
    plgpu.commit_smem()
    # The half of the window that is complete.
    self._write(shared.draw.at[stage], self._window + at * TILE)
    plgpu.barrier_wait(shared.rows.at[stage])
    dqu, dqv = sums
    turned = tiles.Turned(shared.dscore.at[stage])
    dqu, dqv = tiles.add_products(
      (dqu, turned, shared.k.at[stage]),
      (dqv, shared.draw.at[stage], shared.r.at[stage]),
    )
    # All are done with this stage.
    tiles.meet()
    self._fetch(at + 2)
    return dqu, dqv

  def _write(self, source: Any, row: Any) -> None:
    """Begins to write gradients by 64 rows of the table."""
    place = self._head, self._row, self._queries, pl.ds(row, TILE)
    plgpu.copy_smem_to_gmem(source, self._device.draw.at[*place])

  def _write_last(self, dqu: jax.Array, dqv: jax.Array) -> None:
    """Writes the queries' gradients, the last half, and zeros for the rest."""
    device, shared, static = self._device, self._shared, self._static
    half = lax.rem(self._until - self._begin, 2)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    nothing = tiles.zeros(shared.draw.at[0]).astype(jnp.bfloat16)
    slant.write_turned(shared.draw, nothing, half * TILE)
    plgpu.commit_smem()
    last = self._window + self._until * TILE
    self._write(shared.draw.at[half], last)
    plgpu.barrier_wait(shared.rows.at[half])
    term = dqv, shared.draw.at[half], shared.r.at[half]
    (dqv,) = tiles.add_products(term)
    outs = ((dqu + dqv, device.dq), (dqv, device.dqv))
    for n, (acc, _) in enumerate(outs):
      source = shared.k.at[n]
      source[...] = (acc * static.scale).astype(jnp.bfloat16)
    tiles.clear(shared.dscore.at[0])
    plgpu.commit_smem()
    for n, (_, target) in enumerate(outs):
      target = target.at[self._row, self._queries, self._head]
      plgpu.copy_smem_to_gmem(shared.k.at[n], target)
    self._blank(0, self._window + self._begin * TILE)
    self._blank(last + TILE, static.n_rows)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  def _blank(self, low: Any, high: Any) -> None:
    """Writes zeros for rows of the table that no query meets."""

    @functools.partial(
      lax.fori_loop, lax.div(low, TILE), lax.div(high, TILE), init_val=None
    )
    def _(at: Any, _: None) -> None:
      self._write(self._shared.dscore.at[0], at * TILE)
