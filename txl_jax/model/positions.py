"""Sinusoids of relative distance (Dai et al. 2019, section 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.ops.dropout import keep_mask, seed_of


def sinusoid_table(
  n_keys: int,
  d_model: int,
  clamp_length: int | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
  """The position table R [K, D]: sines in the left half, then cosines.

  Row c stands for the distance K - 1 - c, so distances descend to 0 as in the
  paper's code, and the last query of a segment meets key j with row j.

  Args:
    n_keys: K, memory and segment together.
    d_model: D, even.
    clamp_length: larger distances count as this one; None = no limit.
    dtype: of the table and of the sines' arguments, at least float32.
  """
  distance_K = jnp.arange(n_keys - 1, -1, -1, dtype=dtype)
  if clamp_length is not None:
    distance_K = jnp.minimum(distance_K, clamp_length)
  # In float32 whatever the dtype: the paper's trained weights know this table.
  exponent = np.arange(0, d_model, 2, dtype=np.float32) / np.float32(d_model)
  frequency = 1 / np.float32(10000) ** exponent
  angle = distance_K[:, None] * jnp.asarray(frequency, dtype)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def drop_positions(
  table_KD: jax.Array, key: jax.Array, *, rate: float, whole_features: bool
) -> jax.Array:
  """Dropout on the position table.

  Args:
    table_KD: the table R.
    key: typed PRNG key.
    rate: share that is dropped; the rest is scaled up.
    whole_features: drop columns, for all distances together, as only masks of
      that kind can be factored out of the table; False drops elements, as the
      paper's code does.
  """
  shape = table_KD.shape[1:] if whole_features else table_KD.shape
  keep = keep_mask(seed_of(key), shape, rate)
  return jnp.where(keep, table_KD / (1 - rate), 0)
