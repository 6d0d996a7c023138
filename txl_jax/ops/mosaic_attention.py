"""Relative attention to what is remembered, by the kernel for Hopper."""

import jax
import jax.numpy as jnp
from jax import lax

from txl_jax.ops.alignment import ALIGNMENT, pad
from txl_jax.ops.biases import bias_of_rows
from txl_jax.ops.mosaic_decoding import decode
from txl_jax.ops.mosaic_forward import forward
from txl_jax.ops.mosaic_ranges import tiles_of
from txl_jax.ops.mosaic_tiles import TILE

# Keys are divided among more blocks where there are fewer than a GPU can run.
_ENOUGH_BLOCKS = 264
# For one query a block with fewer tiles than these hardly ends any sooner, and
# what the splits have attended to has to be put together.
_TILES_OF_ONE = 5


# Compiled for itself, so that it is lowered once for all layers.
@jax.jit
def attend(
  qu_BTHC: jax.Array,
  excess_HC: jax.Array,
  k_HBLC: jax.Array,
  v_HBLC: jax.Array,
  r_HWC: jax.Array,
  end: jax.Array,
  first_BT: jax.Array,
) -> jax.Array:
  """Attends from T queries, the first of which stands at key `end`.

  Args:
    qu_BTHC: queries with content bias, scaled.
    excess_HC: float32, what the position bias exceeds that by, scaled.
    k_HBLC: keys; those that no query sees may be anything finite.
    v_HBLC: values.
    r_HWC: the projected table of L distances, descending to 0, and
      `TABLE_MARGIN` rows of anything.
    end: int32, the key at the place of the first query.
    first_BT: int32, the first key that each query sees, its own being the last.

  Returns:
    The attended values [B, T, H, C].
  """
  B, T, H, C = qu_BTHC.shape
  L, T_pad = k_HBLC.shape[2], -(-T // TILE) * TILE
  qu_BTHC = pad(qu_BTHC, (B, T_pad, H, C))
  first_BT = jnp.pad(
    first_BT.astype(jnp.int32), ((0, 0), (0, T_pad - T)), mode='edge'
  )
  n_blocks = H * B * T_pad // TILE
  n_splits = min(-(-_ENOUGH_BLOCKS // n_blocks), L // TILE)
  table, start = _table(r_HWC, L, end)
  bias_HW = bias_of_rows(excess_HC, table)
  out, lse = forward(
    *(qu_BTHC, k_HBLC, v_HBLC, table, bias_HW, first_BT),
    tiles_of(first_BT, end, T, L, n_splits),
    jnp.stack([jnp.int32(end), start]),
    heads_first=True,
  )
  return _together(out, lse)[:, :T]


# Likewise.
@jax.jit
def attend_one(
  qu_B1HC: jax.Array,
  qv_B1HC: jax.Array,
  k_HBLC: jax.Array,
  v_HBLC: jax.Array,
  r_HWC: jax.Array,
  end: jax.Array,
  first_B1: jax.Array,
) -> jax.Array:
  """`attend` from the query at key `end` alone.

  Args:
    qu_B1HC: the query with content bias, scaled.
    qv_B1HC: the query with position bias, scaled.
    k_HBLC: keys, these and the others as in `attend`.
    v_HBLC: values.
    r_HWC: the projected table.
    end: the key at the place of the query.
    first_B1: the first key that it sees.
  """
  B, _, H, C = qu_B1HC.shape
  L = k_HBLC.shape[2]
  wanted = -(-_ENOUGH_BLOCKS // (H * B))
  n_splits = max(1, min(wanted, L // (_TILES_OF_ONE * TILE)))
  position_HBW = jnp.einsum(
    'bthc,hwc->hbw', qv_B1HC, r_HWC, preferred_element_type=jnp.float32
  )
  out_SBHC, lse_SHBX = decode(
    *(qu_B1HC[:, 0], position_HBW, k_HBLC, v_HBLC),
    first_B1[:, 0].astype(jnp.int32),
    jnp.stack([jnp.int32(end), jnp.int32(L - 1 - end)]),
    n_splits,
  )
  out_SB1HC, lse_SHB1 = out_SBHC[:, :, None], lse_SHBX[..., :1]
  return _together(out_SB1HC, lse_SHB1).astype(qu_B1HC.dtype)


def _table(
  r_HWC: jax.Array, L: int, end: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The table with rows for all that a tile may touch.

  Returns:
    The table, and the row where the window of queries and keys from 0 begins,
    a multiple of 8, as rows are fetched by eights.
  """
  start = jnp.int32(L - end)
  shift = -start % ALIGNMENT
  # Around it are rows that only padded queries and unseen keys meet.
  table = jnp.pad(r_HWC, ((0, 0), (TILE + ALIGNMENT, TILE), (0, 0)))
  size = table.shape[1] - ALIGNMENT
  table = lax.dynamic_slice_in_dim(table, ALIGNMENT - shift, size, axis=1)
  return table, start + shift


def _together(out: jax.Array, lse: jax.Array) -> jax.Array:
  """What the splits have attended to [S, B, T, H, C], weighted."""
  if len(out) == 1:
    return out[0]
  weight = jnp.exp2(lse - lse.max(axis=0))
  weight_SHBT = weight / weight.sum(axis=0)
  weight_SBTH = weight_SHBT.transpose(0, 2, 3, 1)
  return (out * weight_SBTH[..., None]).sum(axis=0).astype(out.dtype)
