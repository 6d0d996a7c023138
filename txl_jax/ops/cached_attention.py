"""Relative attention over keys and values that stay where they were written.

For reading on at fixed parameters: a buffer has room at its end, so that a
segment's keys are written in place, nothing slides, and the position table is
projected once. What moves instead is the place in the table where a query finds
the distance to a slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from txl_jax.ops import shards
from txl_jax.ops.alignment import aligned, pad
from txl_jax.ops.biases import biased, excess
from txl_jax.ops.hopper import (
  KERNEL_TILE,
  KERNEL_WIDTHS,
  TABLE_MARGIN,
  on_hopper,
)


class Slots(NamedTuple):
  """What one layer remembers, C padded to a multiple of 8.

  Attributes:
    keys_HBLC: in the order of the text; what stands from `end` on is to come.
    values_HBLC: likewise.
    r_HWC: the projected table W_R R of as many distances as there are slots,
      from `pad_table`.
    end: int32, slots that are filled.
  """

  keys_HBLC: jax.Array
  values_HBLC: jax.Array
  r_HWC: jax.Array
  end: jax.Array

  def write(self, k_BTHC: jax.Array, v_BTHC: jax.Array) -> 'Slots':
    """The slots with the keys and values of T more positions."""
    written = (
      jax.lax.dynamic_update_slice_in_dim(
        slots_HBLC, heads_first(new_BTHC), self.end, axis=2
      )
      for slots_HBLC, new_BTHC in zip(self[:2], (k_BTHC, v_BTHC))
    )
    return self._replace(**dict(zip(('keys_HBLC', 'values_HBLC'), written)))


def slots_for(n_positions: int) -> int:
  """How many slots to have for so many positions: as matrix units like it."""
  size = aligned(n_positions)
  return (
    size if size < 8 * KERNEL_TILE else -(-size // KERNEL_TILE) * KERNEL_TILE
  )


def skips_unseen(
  dtype: Any, shape: tuple[int, int, int, int], implementation: str
) -> bool:
  """Whether slots that no query sees cost nothing.

  Args:
    dtype: of queries and keys.
    shape: of the queries [B, T, H, C].
    implementation: as in `cached_attention`.
  """
  wanted = implementation in ('auto', 'mosaic_gpu')
  # From so many on, `slots_for` gives whole tiles.
  return wanted and _has_kernel(jnp.dtype(dtype), shape, 8 * KERNEL_TILE)


def heads_first(x_BXHC: jax.Array) -> jax.Array:
  """[H, B, X, C], with C padded."""
  C = x_BXHC.shape[-1]
  padding = [(0, 0)] * 3 + [(0, aligned(C) - C)]
  return jnp.pad(x_BXHC, padding).transpose(2, 0, 1, 3)


def pad_table(r_WHC: jax.Array) -> jax.Array:
  """The projected table, distances descending to 0, and rows of zeros."""
  W, H, C = r_WHC.shape
  padding = ((0, TABLE_MARGIN), (0, 0), (0, aligned(C) - C))
  return jnp.pad(r_WHC, padding).transpose(1, 0, 2)


def cached_attention(
  q_BTHC: jax.Array,
  slots: Slots,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  implementation: str = 'auto',
) -> jax.Array:
  """Attends from the T positions that have been written at `slots.end`.

  Args:
    q_BTHC: queries; those behind the T of `first_BT` attend to nothing.
    slots: with the keys and values of the queries' own positions.
    u_HC: content bias u.
    v_bias_HC: position bias v.
    first_BT: int, the first slot that each query sees; the last is its own.
    implementation: 'auto' and 'mosaic_gpu' take the kernel where it runs and
      pays.

  Returns:
    The attended values [B, T, H, C], as `relative_attention` gives them.
  """
  shape, T, C = q_BTHC.shape, first_BT.shape[1], q_BTHC.shape[-1]
  q_BTHC = q_BTHC[:, :T]
  has_kernel = _has_kernel(q_BTHC.dtype, q_BTHC.shape, slots.keys_HBLC.shape[2])
  operands = q_BTHC, slots, u_HC, v_bias_HC, first_BT
  if implementation in ('auto', 'mosaic_gpu') and has_kernel:
    out_BTHC = _by_kernel(*operands)
  else:
    out_HBTC = _by_xla(*operands)
    out_BTHC = out_HBTC[..., :C].transpose(1, 2, 0, 3)
  return pad(out_BTHC, shape)


def _by_kernel(
  q_BTHC: jax.Array,
  slots: Slots,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
) -> jax.Array:
  from txl_jax.ops import mosaic_attention  # half a second, for GPUs alone

  keys_HBLC, values_HBLC, r_HWC, end = slots
  scale = q_BTHC.shape[-1] ** -0.5
  if q_BTHC.shape[1] == 1:
    attend = mosaic_attention.attend_one
    other, axes = biased(q_BTHC, v_bias_HC, scale), ('rows', None, 'heads')
  else:
    attend = mosaic_attention.attend
    other, axes = excess(u_HC, v_bias_HC, scale), ('heads',)
  attend = shards.per_shard(
    attend,
    (
      *(('rows', None, 'heads'), axes),
      *[('heads', 'rows')] * 2,
      *(('heads',), (), ('rows',)),
    ),
    ('rows', None, 'heads'),
  )
  qu_BTHC = biased(q_BTHC, u_HC, scale)
  return attend(qu_BTHC, other, keys_HBLC, values_HBLC, r_HWC, end, first_BT)


def _by_xla(
  q_BTHC: jax.Array,
  slots: Slots,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
) -> jax.Array:
  _, T, _, C = q_BTHC.shape
  qu_HBTC, qv_HBTC = (
    heads_first(biased(q_BTHC, bias_HC, C**-0.5))
    for bias_HC in (u_HC, v_bias_HC)
  )
  dtype = q_BTHC.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  keys_HBLC, values_HBLC, r_HWC, end = slots
  n_slots = keys_HBLC.shape[2]
  content_HBTL = jnp.einsum('hbtc,hblc->hbtl', qu_HBTC, keys_HBLC)
  raw_HBTW = jnp.einsum('hbtc,hwc->hbtw', qv_HBTC, r_HWC)
  position_HBTL = _to_slots(raw_HBTW, n_slots, end)
  slot_L = jnp.arange(n_slots)
  last_T1 = end + jnp.arange(T)[:, None]
  visible_BTL = (first_BT[..., None] <= slot_L) & (slot_L <= last_T1)
  score_HBTL = jnp.where(
    visible_BTL,
    content_HBTL.astype(wide) + position_HBTL.astype(wide),
    jnp.finfo(wide).min,
  )
  # Every query sees its own key, so that the total is at least 1.
  weight_HBTL = jnp.exp(score_HBTL - score_HBTL.max(-1, keepdims=True))
  total_HBT1 = weight_HBTL.sum(-1, keepdims=True)
  out_HBTC = jnp.einsum(
    'hbtl,hblc->hbtc',
    weight_HBTL.astype(dtype),
    values_HBLC,
    preferred_element_type=wide,
  )
  return (out_HBTC / total_HBT1).astype(dtype)


def _to_slots(raw_HBTW: jax.Array, n_slots: int, end: jax.Array) -> jax.Array:
  """Brings scores from table rows to slots.

  Query i, in slot `end` + i, finds its distance to slot s in row
  n_slots - 1 - end - i + s. That is one stretch of the flat array, in rows that
  are one shorter, from an offset that depends on `end`. What it leaves right of
  a query's own slot is meaningless.
  """
  *lead, T, W = raw_HBTW.shape
  flat = raw_HBTW.reshape(*lead, T * W)
  # With a single query the offset may leave less than a row behind it.
  flat = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, n_slots)])
  flat = jax.lax.dynamic_slice_in_dim(
    flat, n_slots - 1 - end, T * (W - 1), axis=-1
  )
  return flat.reshape(*lead, T, W - 1)[..., :n_slots]


def _has_kernel(
  dtype: Any, shape: tuple[int, int, int, int], n_keys: int
) -> bool:
  """Whether the kernel runs here, and is the fastest.

  Args:
    dtype: of queries and keys.
    shape: of the queries [B, T, H, C].
    n_keys: L.
  """
  B, T, H, C = shape
  fits = (
    dtype == jnp.bfloat16 and C in KERNEL_WIDTHS and n_keys % KERNEL_TILE == 0
  )
  # A few queries leave most of a tile empty; for one there is another kernel.
  return fits and (T == 1 or T >= 16 or H * B >= 128) and on_hopper()
