"""Drawing the next token from log-probabilities."""

import jax
import jax.numpy as jnp

from txl_jax.errors import InputError


def check_options(
  temperature: float, top_k: int | None, top_p: float | None
) -> None:
  """Raises an InputError for sampling options out of range."""
  if not temperature >= 0:
    raise InputError(f'temperature must be at least 0, found {temperature}')
  if top_k is not None and top_k < 1:
    raise InputError(f'top_k must be at least 1, found {top_k}')
  if top_p is not None and not 0 < top_p <= 1:
    raise InputError(f'top_p must be in (0, 1], found {top_p}')


def sample(
  logp_BV: jax.Array,
  keys_B: jax.Array,
  *,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
) -> jax.Array:
  """Draws one token per row, int32 [B].

  Args:
    logp_BV: log-probabilities, not necessarily normalised.
    keys_B: one typed PRNG key per row.
    temperature: divides the log-probabilities; 0 takes the most likely token.
    top_k: keep the k most likely tokens.
    top_p: of those, keep the most likely ones that together reach this
      probability (Holtzman et al. 2020).
  """
  if temperature == 0:
    return jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
  logp_BV = logp_BV / temperature
  if top_k is not None:
    logp_BV = keep_top_k(logp_BV, top_k)
  if top_p is not None and top_p < 1:
    logp_BV = keep_top_p(logp_BV, top_p)
  return jax.vmap(jax.random.categorical)(keys_B, logp_BV).astype(jnp.int32)


def keep_top_k(logp_BV: jax.Array, k: int) -> jax.Array:
  """All but the k most likely tokens become impossible; ties at k all stay."""
  least_B = jax.lax.top_k(logp_BV, min(k, logp_BV.shape[-1]))[0][:, -1]
  return jnp.where(logp_BV >= least_B[:, None], logp_BV, -jnp.inf)


def keep_top_p(logp_BV: jax.Array, p: float) -> jax.Array:
  """Tokens outside the smallest most likely set of probability p go."""
  sorted_BV = jnp.sort(jax.nn.softmax(logp_BV), descending=True)
  before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
  n_kept_B = (before_BV < p).sum(axis=-1)
  least_B = jnp.take_along_axis(sorted_BV, n_kept_B[:, None] - 1, axis=-1)
  return jnp.where(jax.nn.softmax(logp_BV) >= least_B, logp_BV, -jnp.inf)
