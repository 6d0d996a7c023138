"""Relative attention for XLA, made to touch memory as little as it can.

On an accelerator the cost is in moving arrays of the size of the scores,
[H, B, T, K]. Forward these are the two matrix products, and the weights
exp(score - largest), which are all that the backward pass keeps; backward the
gradients of weights and scores, the latter once by key and once by table row.
All are in the dtype of the queries; mask, softmax and dropout are computed on
the way, in float32 or wider. What divides or scales a whole row is applied to
the queries and the outputs instead.

Heads come first, so that the product with the projected table, which all rows
share, is one large product per head. Sizes are padded to multiples of 8, which
tensor cores want; padded queries see nothing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from txl_jax.ops.alignment import ALIGNMENT, aligned
from txl_jax.ops.biases import biased
from txl_jax.ops.dropout import row_index, row_words, weight_kept

# Queries that share one product; those before a block's end see fewer keys.
_BLOCK = None
# A weight that is dropped is stored this much smaller: too small to be felt in
# a sum, large enough to be restored. Weights under _LEAST count as 0.
_FAINT, _LEAST = 2.0**-64, 2.0**-60


class _Static(NamedTuple):
  """What is known when a block is compiled."""

  rate: float  # of dropout
  offset: int  # the last key that its first query sees


def relative_attention(
  q_BTHC: jax.Array,
  k_BKHC: jax.Array,
  v_BKHC: jax.Array,
  table_KD: jax.Array,
  w_r_DHC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  *,
  scale: float,
  dropout_rate: float,
  dropout_seed: jax.Array | None,
) -> jax.Array:
  """The operator of `ops/relative_attention.py`."""
  B, T, H, C = q_BTHC.shape
  M = k_BKHC.shape[1] - T
  T_pad = aligned(T)
  K_pad, W = aligned(M + T_pad), _width(M + T_pad)

  queries_HBTC = [
    _heads_first(biased(q_BTHC, bias_HC, scale), T_pad)
    for bias_HC in (u_HC, v_bias_HC)
  ]
  k_HBKC, v_HBKC = _heads_first(k_BKHC, K_pad), _heads_first(v_BKHC, K_pad)
  # The last row keeps its place from the end of what queries can see.
  table_WD = jnp.pad(table_KD, ((T_pad - T, W - M - T_pad), (0, 0)))
  w_r_DHC = jnp.pad(w_r_DHC, ((0, 0), (0, 0), (0, aligned(C) - C)))
  r_HWC = jnp.einsum('wd,dhc->hwc', table_WD, w_r_DHC)
  # Keys from K_pad on: padded queries see none.
  padding = ((0, 0), (0, T_pad - T))
  first_BT = jnp.pad(first_BT, padding, constant_values=K_pad)
  word_HBT = _words(dropout_seed, (B, H, T), T_pad) if dropout_rate else None
  blocks = []
  for begin in range(0, T_pad, _BLOCK or T_pad):
    end = min(begin + (_BLOCK or T_pad), T_pad)
    seen, row = aligned(M + end), T_pad - end
    blocks.append(
      _attend(
        _Static(dropout_rate, M + begin),
        *(query_HBTC[:, :, begin:end] for query_HBTC in queries_HBTC),
        *(k_HBKC[:, :, :seen], v_HBKC[:, :, :seen]),
        r_HWC[:, row : row + _width(M + end)],
        first_BT[:, begin:end],
        None if word_HBT is None else word_HBT[:, :, begin:end],
      )
    )
  out_HBTC = jnp.concatenate(blocks, axis=2)
  return out_HBTC[:, :, :T, : v_BKHC.shape[-1]].transpose(1, 2, 0, 3)


def _width(n_keys: int) -> int:
  """Rows of the padded table; `_skew` needs more of them than keys."""
  return aligned(n_keys) + ALIGNMENT


def _heads_first(x_BXHC: jax.Array, length: int) -> jax.Array:
  """Padded with zeros to this length and an aligned width, [H, B, X, C]."""
  _, X, _, C = x_BXHC.shape
  padding = ((0, 0), (0, length - X), (0, 0), (0, aligned(C) - C))
  return jnp.pad(x_BXHC, padding).transpose(2, 0, 1, 3)


def _words(
  seed: jax.Array, rows: tuple[int, int, int], length: int
) -> jax.Array:
  """The word of dropout's hash for each row of scores, padded [H, B, T]."""
  word_HBT = row_words(seed, row_index(rows)).swapaxes(0, 1)
  word_HBT = jnp.pad(word_HBT, ((0, 0), (0, 0), (0, length - rows[-1])))
  # Else they would be computed anew for each score.
  return jax.lax.optimization_barrier(word_HBT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  static: _Static,
  qu_HBTC: jax.Array,
  qv_HBTC: jax.Array,
  k_HBKC: jax.Array,
  v_HBKC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  word_HBT: jax.Array | None,
) -> jax.Array:
  """The attended values [H, B, T, C] of one block of queries.

  Args:
    static: what is known when it is compiled.
    qu_HBTC: queries with content bias, scaled.
    qv_HBTC: queries with position bias, scaled likewise.
    k_HBKC: keys.
    v_HBKC: values.
    r_HWC: the projected table; `_skew` says which row meets which key.
    first_BT: the first key that each query sees.
    word_HBT: of dropout's hash; None without dropout.
  """
  return _forward(
    static, qu_HBTC, qv_HBTC, k_HBKC, v_HBKC, r_HWC, first_BT, word_HBT
  )[0]


def _forward(
  static: _Static,
  qu_HBTC: jax.Array,
  qv_HBTC: jax.Array,
  k_HBKC: jax.Array,
  v_HBKC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  word_HBT: jax.Array | None,
) -> tuple[jax.Array, tuple]:
  wide = jnp.promote_types(qu_HBTC.dtype, jnp.float32)
  n_keys = k_HBKC.shape[2]
  content_HBTK = jnp.einsum('hbtc,hbkc->hbtk', qu_HBTC, k_HBKC)
  raw_HBTW = jnp.einsum('hbtc,hwc->hbtw', qv_HBTC, r_HWC)
  score_HBTK = content_HBTK.astype(wide) + _skew(raw_HBTW, n_keys).astype(wide)
  visible_BTK = _visible(first_BT, n_keys, static.offset)
  lowest = jnp.finfo(wide).min
  score_HBTK = jnp.where(visible_BTK, score_HBTK, lowest)
  # Above `lowest`, so that a query that sees nothing has no weights.
  largest_HBT = jnp.maximum(score_HBTK.max(-1), lowest / 2)
  weight_HBTK = jnp.exp(score_HBTK - largest_HBT[..., None])
  # Rounded and stored before they are summed: else XLA computes the scores
  # once more for the sum.
  weight_HBTK = jax.lax.optimization_barrier(weight_HBTK.astype(v_HBKC.dtype))
  weight_HBTK = weight_HBTK.astype(wide)
  # At least 1, the largest weight, where anything is seen.
  total_HBT = jnp.maximum(weight_HBTK.sum(-1), 1)
  inverse_HBT1 = (1 / (total_HBT * (1 - static.rate)))[..., None]
  if word_HBT is not None:
    weight_HBTK = _mark_dropped(weight_HBTK, word_HBT, static.rate)
  weight_HBTK = weight_HBTK.astype(v_HBKC.dtype)
  out_HBTC = jnp.einsum(
    'hbtk,hbkc->hbtc', weight_HBTK, v_HBKC, preferred_element_type=wide
  )
  out_HBTC = (out_HBTC * inverse_HBT1).astype(v_HBKC.dtype)
  saved = (qu_HBTC, qv_HBTC, k_HBKC, v_HBKC, r_HWC)
  return out_HBTC, (*saved, weight_HBTK, inverse_HBT1, out_HBTC)


def _backward(
  static: _Static, saved: tuple, gradient_HBTC: jax.Array
) -> tuple[Any, ...]:
  qu_HBTC, qv_HBTC, k_HBKC, v_HBKC, r_HWC = saved[:5]
  weight_HBTK, inverse_HBT1, out_HBTC = saved[5:]
  wide, dtype = inverse_HBT1.dtype, v_HBKC.dtype
  # With respect to the sums that `inverse` turned into the output.
  sums_HBTC = (gradient_HBTC.astype(wide) * inverse_HBT1).astype(dtype)
  dv_HBKC = jnp.einsum('hbtk,hbtc->hbkc', weight_HBTK, sums_HBTC)
  slope_HBTK = jnp.einsum('hbtc,hbkc->hbtk', sums_HBTC, v_HBKC).astype(wide)
  mean_HBT1 = (sums_HBTC.astype(wide) * out_HBTC.astype(wide)).sum(
    -1, keepdims=True
  ) * (1 - static.rate)
  weight_HBTK = weight_HBTK.astype(wide)
  if static.rate > 0:
    dropped_HBTK = weight_HBTK < _LEAST
    slope_HBTK = jnp.where(dropped_HBTK, 0, slope_HBTK)
    weight_HBTK *= jnp.where(dropped_HBTK, 1 / _FAINT, 1)
  dscore_HBTK = (weight_HBTK * (slope_HBTK - mean_HBT1)).astype(dtype)
  draw_HBTW = _unskew(dscore_HBTK, r_HWC.shape[1])
  gradients = (
    jnp.einsum('hbtk,hbkc->hbtc', dscore_HBTK, k_HBKC),
    jnp.einsum('hbtw,hwc->hbtc', draw_HBTW, r_HWC),
    jnp.einsum('hbtk,hbtc->hbkc', dscore_HBTK, qu_HBTC),
    dv_HBKC,
    jnp.einsum('hbtw,hbtc->hwc', draw_HBTW, qv_HBTC),
  )
  return *gradients, None, None


_attend.defvjp(_forward, _backward)


def _visible(first_BT: jax.Array, n_keys: int, offset: int) -> jax.Array:
  """The visibility rule [B, T, K], for a block whose query i is at offset + i.

  Broadcast iotas: XLA computes it where it is used instead of storing it.
  """
  shape = (*first_BT.shape, n_keys)
  key_BTK = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
  last_BTK = jax.lax.broadcasted_iota(jnp.int32, shape, 1) + offset
  return (first_BT[..., None] <= key_BTK) & (key_BTK <= last_BTK)


def _mark_dropped(
  weight_HBTK: jax.Array, word_HBT: jax.Array, rate: float
) -> jax.Array:
  """Makes the weights that are dropped faint."""
  key_HBTK = jax.lax.broadcasted_iota(jnp.uint32, weight_HBTK.shape, 3)
  keep_HBTK = weight_kept(word_HBT[..., None], key_HBTK, rate)
  weight_HBTK = jnp.where(weight_HBTK < _LEAST, 0, weight_HBTK)
  return weight_HBTK * jnp.where(keep_HBTK, 1, _FAINT).astype(weight_HBTK.dtype)


def _skew(raw_HBTW: jax.Array, n_keys: int) -> jax.Array:
  """Brings scores from table rows to keys: [i, j] is raw [i, j + T - 1 - i].

  That is the flat array from T - 1 on, in rows that are one shorter: no gather
  and, as W > K, no copy. Right of a query's own key it is meaningless.
  """
  *lead, T, W = raw_HBTW.shape
  flat = raw_HBTW.reshape(*lead, T * W)[..., T - 1 : T * W - 1]
  return flat.reshape(*lead, T, W - 1)[..., :n_keys]


def _unskew(score_HBTK: jax.Array, width: int) -> jax.Array:
  """The transpose of `_skew`, for scores that are 0 where it is meaningless."""
  *lead, T, K = score_HBTK.shape
  lead_padding = [(0, 0)] * len(lead)
  padded = jnp.pad(score_HBTK, (*lead_padding, (0, 0), (0, width - 1 - K)))
  flat = padded.reshape(*lead, T * (width - 1))
  flat = jnp.pad(flat, (*lead_padding, (T - 1, 1)))
  return flat.reshape(*lead, T, width)
