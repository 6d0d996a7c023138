"""Drawing from a softmax of clusters, of which most need not be computed."""

import functools

import jax
import jax.numpy as jnp

# Weights [V, E] in parts, biases [V], and a projection [E, D] from the model's
# width.
Weights = tuple[tuple[jax.Array, ...], jax.Array, jax.Array | None]


def draw(
  hidden_BD: jax.Array,
  keys_B: jax.Array,
  weights: list[Weights],
  lows: list[int],
) -> tuple[jax.Array, jax.Array]:
  """Draws a token for each row from the whole vocabulary.

  First a column of the head; then, only if some row has drawn its cluster, a
  word of a tail. The distribution is the same as that of a single draw.

  Args:
    hidden_BD: hidden states.
    keys_B: typed PRNG keys.
    weights: of the head, whose last columns are the clusters, and of each tail.
    lows: the first token of the head, then of each tail.

  Returns:
    The tokens, int32 [B], and their log-probabilities [B].
  """
  head, *tails = weights
  drawn = _draw(hidden_BD, keys_B, 0, head)
  if not tails:
    return drawn
  cluster_B = drawn[0] - lows[1]

  def open_tails(token_B: jax.Array, logp_B: jax.Array) -> tuple:
    for i, tail in enumerate(tails):
      opened_B = cluster_B == i
      word_B, word_logp_B = jax.lax.cond(
        opened_B.any(),
        functools.partial(_draw, hidden_BD, keys_B, i + 1, tail),
        functools.partial(_as_given, token_B, logp_B),
      )
      token_B = jnp.where(opened_B, lows[i + 1] + word_B, token_B)
      logp_B += jnp.where(opened_B, word_logp_B, 0)
    return token_B, logp_B

  # One question, where most often no row has drawn any cluster.
  return jax.lax.cond((cluster_B >= 0).any(), open_tails, _as_given, *drawn)


def _as_given(*drawn: jax.Array) -> tuple[jax.Array, ...]:
  return drawn


def _draw(
  hidden_BD: jax.Array, keys_B: jax.Array, cluster: int, weights: Weights
) -> tuple[jax.Array, jax.Array]:
  """A column of one softmax for each row, and its log-probability."""
  logp_BV = log_softmax(hidden_BD[:, None], *weights)[:, 0]
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, cluster)
  column_B = jax.vmap(jax.random.categorical)(keys_B, logp_BV)
  drawn_B1 = jnp.take_along_axis(logp_BV, column_B[:, None], axis=1)
  return column_B.astype(jnp.int32), drawn_B1[:, 0]


def log_softmax(
  hidden_BTD: jax.Array,
  parts: tuple[jax.Array, ...],
  bias_V: jax.Array,
  projection_ED: jax.Array | None,
) -> jax.Array:
  """Log-probabilities [B, T, V] of one softmax, in float32 or wider."""
  dtype = hidden_BTD.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  hidden_BTE = project(hidden_BTD, projection_ED)
  # Joining the logits, not the weights, copies least.
  logits = [
    jnp.einsum(
      'bte,ve->btv',
      hidden_BTE,
      weight_VE.astype(dtype),
      preferred_element_type=wide,
    )
    for weight_VE in parts
  ]
  logits_BTV = jnp.concatenate(logits, axis=-1)
  return jax.nn.log_softmax(logits_BTV + bias_V.astype(wide))


def project(hidden: jax.Array, projection_ED: jax.Array | None) -> jax.Array:
  """Hidden states [..., D] in the width of a cluster [..., E]."""
  if projection_ED is None:
    return hidden
  return jnp.einsum('...d,ed->...e', hidden, projection_ED.astype(hidden.dtype))
