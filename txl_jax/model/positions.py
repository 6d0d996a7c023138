"""Dropout on the position table."""

import jax
import jax.numpy as jnp

from txl_jax.ops.dropout import keep_mask, seed_of


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
