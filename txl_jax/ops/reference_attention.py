"""Attention written plainly, differentiated by JAX: what the kernels equal."""

import jax
import jax.numpy as jnp

from txl_jax.ops.dropout import weight_mask


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
  r_KHC = jnp.einsum('kd,dhc->khc', table_KD, w_r_DHC)
  content_BHTK = jnp.einsum('bthc,bkhc->bhtk', q_BTHC + u_HC, k_BKHC)
  position_BHTK = shift(jnp.einsum('bthc,khc->bhtk', q_BTHC + v_bias_HC, r_KHC))
  wide = jnp.promote_types(q_BTHC.dtype, jnp.float32)
  score_BHTK = content_BHTK.astype(wide) + position_BHTK.astype(wide)
  return attend(
    score_BHTK * scale,
    v_BKHC,
    first_BT,
    dropout_rate=dropout_rate,
    dropout_seed=dropout_seed,
  )


def attend(
  score_BHTK: jax.Array,
  v_BKHC: jax.Array,
  first_BT: jax.Array,
  *,
  dropout_rate: float = 0.0,
  dropout_seed: jax.Array | None = None,
) -> jax.Array:
  """Means of the values, weighted by the softmax of the scores.

  Args:
    score_BHTK: scaled scores, at least float32.
    v_BKHC: values.
    first_BT: int, the first key that each query sees.
    dropout_rate: share of attention probabilities that are dropped.
    dropout_seed: uint32, needed if the rate is above 0.

  Returns:
    The attended values [B, T, H, C], in the dtype of the values; 0 for a query
    that sees no key.
  """
  n_queries, n_keys = score_BHTK.shape[-2:]
  visible_BHTK = visible_keys(first_BT, n_queries, n_keys)[:, None]
  lowest = jnp.finfo(score_BHTK.dtype).min
  probability_BHTK = jax.nn.softmax(jnp.where(visible_BHTK, score_BHTK, lowest))
  probability_BHTK = jnp.where(visible_BHTK, probability_BHTK, 0)
  if dropout_rate > 0:
    keep_BHTK = weight_mask(dropout_seed, score_BHTK.shape, dropout_rate)
    probability_BHTK = jnp.where(
      keep_BHTK, probability_BHTK / (1 - dropout_rate), 0
    )
  return jnp.einsum(
    'bhtk,bkhc->bthc', probability_BHTK.astype(v_BKHC.dtype), v_BKHC
  )


def visible_keys(first_BT: jax.Array, n_queries: int, n_keys: int) -> jax.Array:
  """The visibility rule as a boolean mask [B, T, K]."""
  key_K = jnp.arange(n_keys)
  last_T = jnp.arange(n_queries) + (n_keys - n_queries)
  return (first_BT[..., None] <= key_K) & (key_K <= last_T[:, None])


def shift(raw_XTK: jax.Array) -> jax.Array:
  """Moves row i of the last two axes left by T - 1 - i.

  Scores come out of the matrix product by table row; this brings them to the
  key that stands at that row's distance from the query. Prepending a zero
  column and reading the flat array T elements late does it without a gather
  (Dai et al. 2019, appendix B). What it leaves right of a query's own key is
  meaningless and must be masked.
  """
  *lead, n_queries, n_keys = raw_XTK.shape
  padded = jnp.pad(raw_XTK, [(0, 0)] * (len(lead) + 1) + [(1, 0)])
  flat = padded.reshape(*lead, n_queries * (n_keys + 1))
  return flat[..., n_queries:].reshape(raw_XTK.shape)
