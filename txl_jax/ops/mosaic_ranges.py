"""Which tiles of 64 keys blocks of 64 queries see, and the other way round."""

import jax
import jax.numpy as jnp

from txl_jax.ops.hopper import KERNEL_TILE as TILE


def tiles_of(
  first_BT: jax.Array, end: jax.Array, T: int, L: int, n_splits: int
) -> jax.Array:
  """Tiles of keys that some query of the I-th block sees, int32 [B, I, S, 3].

  They are divided among S splits: for each the first and the one after the
  last. The third number is the first tile from which on all queries of the
  block see all keys before their own.
  """
  B, T_pad = first_BT.shape
  blocks_BIX = first_BT.reshape(B, T_pad // TILE, TILE)
  low_BI = jnp.clip(blocks_BIX.min(-1), 0, L - 1) // TILE
  last_I = jnp.minimum(jnp.arange(TILE, T_pad + 1, TILE), T) + end
  high_BI1 = jnp.broadcast_to(-(-last_I // TILE), low_BI.shape)[..., None]
  each_BI1 = -(-(high_BI1 - low_BI[..., None]) // n_splits)
  begin_BIS = low_BI[..., None] + jnp.arange(n_splits) * each_BI1
  begin_BIS = jnp.minimum(begin_BIS, high_BI1)
  until_BIS = jnp.minimum(begin_BIS + each_BI1, high_BI1)
  whole_BI1 = -(-blocks_BIX.max(-1, keepdims=True) // TILE)
  whole_BIS = jnp.broadcast_to(whole_BI1, begin_BIS.shape)
  both = begin_BIS, until_BIS, whole_BIS
  return jnp.stack(both, axis=-1).astype(jnp.int32)


def query_ranges(tiles_BIS3: jax.Array, n_tiles: int) -> jax.Array:
  """First block of queries that sees each tile of keys, and after the last.

  int32 [B, J, 2]; equal if there is none.
  """
  begin_BI1, until_BI1 = (tiles_BIS3[:, :, 0, n, None] for n in range(2))
  tile_J = jnp.arange(n_tiles)
  seen_BIJ = (begin_BI1 <= tile_J) & (tile_J < until_BI1)
  n_blocks = seen_BIJ.shape[1]
  any_BJ = seen_BIJ.any(1)
  low_BJ = jnp.where(any_BJ, seen_BIJ.argmax(1), 0)
  high_BJ = jnp.where(any_BJ, n_blocks - seen_BIJ[:, ::-1].argmax(1), 0)
  return jnp.stack([low_BJ, high_BJ], axis=-1).astype(jnp.int32)
