"""Sinusoids of relative distance (Dai et al. 2019, section 3.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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
  angle = distance_K[:, None] * jnp.asarray(frequencies(d_model), dtype)
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def frequencies(d_model: int) -> np.ndarray:
  """Angular frequencies [D / 2], descending from 1.

  In float32 whatever the dtype: the paper's trained weights know this table.
  """
  exponent = np.arange(0, d_model, 2, dtype=np.float32) / np.float32(d_model)
  return 1 / np.float32(10000) ** exponent


class Sinusoids(NamedTuple):
  """The position table of all distances, by what its columns are multiplied by.

  A table with single elements dropped, or distances clamped, is none.

  Attributes:
    factor_D: of each column, at least float32.
  """

  factor_D: jax.Array

  def table(self, n_keys: int, dtype: jnp.dtype) -> jax.Array:
    """The table [K, D] itself."""
    wide = self.factor_D.dtype
    plain_KD = sinusoid_table(n_keys, len(self.factor_D), dtype=wide)
    return (plain_KD * self.factor_D).astype(dtype)
