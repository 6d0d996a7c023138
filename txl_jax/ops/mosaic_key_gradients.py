"""Gradients of keys and values as a kernel for NVIDIA's Hopper.

They are sums over the queries: of the scores' gradients times queries, and of
the weights times the gradients of what they weigh. XLA would have heads before
positions in all three arrays, which none of them has, and read what no query
sees.
"""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.mosaic_tiles import TILE

# Tiles of queries that are on their way at once.
_STAGES = 3


def sum_over_queries(
  a_BHTL: jax.Array, x_BTHC: jax.Array, tiles_BIS2: jax.Array
) -> jax.Array:
  """For each key the rows x of all queries, times their numbers a for it.

  Args:
    a_BHTL: bfloat16; T and L are multiples of 64.
    x_BTHC: bfloat16.
    tiles_BIS2: from `tiles_of`, of a single split: outside of them a is 0.

  Returns:
    Sums [B, L, H, C], bfloat16.
  """
  B, H, T, L = a_BHTL.shape
  n_parts = 2 if L % (2 * TILE) == 0 else 1
  ranges_BJ2 = _ranges(tiles_BIS2, L // TILE, n_parts)
  return _kernel(B, H, L, x_BTHC.shape[-1], n_parts)(a_BHTL, x_BTHC, ranges_BJ2)


def _ranges(tiles_BIS2: jax.Array, n_tiles: int, n_parts: int) -> jax.Array:
  """First block of queries that sees some of n_parts tiles, and after the last.

  int32 [B, J, 2]; equal if there is none.
  """
  begin_BI1, until_BI1 = (
    tiles_BIS2[:, :, 0, 0, None],
    tiles_BIS2[:, :, 0, 1, None],
  )
  tile_J = jnp.arange(0, n_tiles, n_parts)
  seen_BIJ = (begin_BI1 < tile_J + n_parts) & (until_BI1 > tile_J)
  seen_BIJ &= begin_BI1 < until_BI1
  n_blocks = seen_BIJ.shape[1]
  any_BJ = seen_BIJ.any(1)
  low_BJ = jnp.where(any_BJ, seen_BIJ.argmax(1), 0)
  high_BJ = jnp.where(any_BJ, n_blocks - seen_BIJ[:, ::-1].argmax(1), 0)
  return jnp.stack([low_BJ, high_BJ], axis=-1).astype(jnp.int32)


@functools.cache
def _kernel(B: int, H: int, L: int, C: int, n_parts: int) -> Any:
  def body(*arrays: Any, **shared: Any) -> None:
    device = SimpleNamespace(**dict(zip(('a', 'x', 'ranges', 'out'), arrays)))
    _sum_block(n_parts, device, SimpleNamespace(**shared))

  return plgpu.kernel(
    body,
    out_type=jax.ShapeDtypeStruct((B, L, H, C), jnp.bfloat16),
    scratch_types=dict(
      a=tiles.shared_tile(TILE, _STAGES, n_parts),
      x=tiles.shared_tile(C, _STAGES),
      out=tiles.shared_tile(C, n_parts),
      loaded=plgpu.Barrier(num_barriers=_STAGES * (n_parts + 1)),
    ),
    grid=(H, L // (n_parts * TILE), B),
    grid_names=('head', 'keys', 'row'),
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )


def _sum_block(
  n_parts: int, device: SimpleNamespace, shared: SimpleNamespace
) -> None:
  """A block of the kernel: some tiles of keys, of a row and head."""
  head, row = lax.axis_index('head'), lax.axis_index('row')
  block = lax.axis_index('keys')
  low, high = (device.ranges[row, block, n] for n in range(2))
  keys = [pl.ds((block * n_parts + n) * TILE, TILE) for n in range(n_parts)]

  def fetch(at: Any) -> None:
    stage, queries = lax.rem(at - low, _STAGES), pl.ds(at * TILE, TILE)
    pairs = [(device.x.at[row, queries, head], shared.x.at[stage])]
    for n, some in enumerate(keys):
      source = device.a.at[row, head, queries, some]
      pairs.append((source, shared.a.at[stage, n]))
    for n, (source, target) in enumerate(pairs):
      loaded = shared.loaded.at[stage * (n_parts + 1) + n]
      plgpu.copy_gmem_to_smem(source, target, loaded)

  def fetch_if_any(at: Any) -> None:
    pl.when(at < high)(lambda: fetch(at))

  def step(at: Any, sums: tuple) -> tuple:
    stage = lax.rem(at - low, _STAGES)
    for n in range(n_parts + 1):
      plgpu.barrier_wait(shared.loaded.at[stage * (n_parts + 1) + n])
    sums = tuple(
      tiles.add_turned_product(
        sums[n], shared.a.at[stage, n], shared.x.at[stage]
      )
      for n in range(n_parts)
    )
    # All are done with this stage.
    plgpu.commit_smem()
    fetch_if_any(at + _STAGES)
    return sums

  for n in range(_STAGES):
    fetch_if_any(low + n)
  zeros = (tiles.zeros(shared.out.at[0]),) * n_parts
  sums = lax.fori_loop(low, high, step, zeros)
  for n, acc in enumerate(sums):
    shared.out[n] = acc.astype(jnp.bfloat16)
  plgpu.commit_smem()
  for n, some in enumerate(keys):
    plgpu.copy_smem_to_gmem(shared.out.at[n], device.out.at[row, some, head])
  plgpu.wait_smem_to_gmem(0)
