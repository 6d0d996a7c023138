"""Which tokens can be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txl_jax.errors import InputError
from txl_jax.generation.sampling import (
  Sampling,
  keep_min_p,
  keep_top_k,
  keep_top_p,
  sample,
)

PROBABILITY_V = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


def _draws(n: int, **options) -> np.ndarray:
  logp_BV = jnp.log(jnp.tile(PROBABILITY_V, (n, 1)))
  keys_B = jax.random.split(jax.random.key(0), n)
  draw = jax.jit(sample, static_argnums=2)
  return np.asarray(draw(logp_BV, keys_B, Sampling(**options)))


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_frequencies(temperature):
  n = 20_000
  expected_V = PROBABILITY_V ** (1 / temperature)
  expected_V *= n / expected_V.sum()
  found_V = np.bincount(_draws(n, temperature=temperature), minlength=6)
  chi_square = ((found_V - expected_V) ** 2 / expected_V).sum()
  assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001


def test_temperature_zero_is_the_most_likely():
  assert (_draws(10, temperature=0) == 0).all()


@pytest.mark.parametrize('k', [1, 3, 6, 99])
def test_top_k_keeps_k_tokens(k):
  kept = jnp.isfinite(keep_top_k(jnp.log(PROBABILITY_V)[None], k))
  assert kept[0].tolist() == [i < k for i in range(6)]


@pytest.mark.parametrize(
  ('p', 'n_kept'), [(0.01, 1), (0.39, 1), (0.41, 2), (0.66, 3), (0.97, 6)]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, n_kept):
  order = np.array([3, 0, 5, 1, 4, 2])  # not sorted by probability
  kept = jnp.isfinite(keep_top_p(jnp.log(PROBABILITY_V[order])[None], p))
  assert kept[0].tolist() == [i < n_kept for i in order]


@pytest.mark.parametrize(
  ('p', 'n_kept'), [(1.0, 1), (0.63, 1), (0.62, 2), (0.2, 4), (0.01, 6)]
)
def test_min_p_keeps_those_of_this_share_of_the_highest(p, n_kept):
  order = np.array([3, 0, 5, 1, 4, 2])
  kept = jnp.isfinite(keep_min_p(jnp.log(PROBABILITY_V[order])[None], p))
  assert kept[0].tolist() == [i < n_kept for i in order]


TIED_V = np.log([0.05, 0.2, 0.3, 0.2, 0.05, 0.2])


@pytest.mark.parametrize(
  ('keep', 'limit', 'kept'),
  [
    (keep_top_k, 1, {2}),
    (keep_top_k, 2, {1, 2, 3, 5}),
    (keep_top_k, 5, {0, 1, 2, 3, 4, 5}),
    (keep_top_p, 0.29, {2}),
    (keep_top_p, 0.45, {1, 2, 3, 5}),
    (keep_top_p, 0.95, {0, 1, 2, 3, 4, 5}),
    (keep_min_p, 0.66, {1, 2, 3, 5}),
    (keep_min_p, 0.67, {2}),
  ],
)
def test_equally_likely_tokens_stay_or_go_together(keep, limit, kept):
  found = jnp.isfinite(keep(jnp.asarray(TIED_V)[None], limit))[0]
  assert set(np.flatnonzero(found)) == kept


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0.01, 1))
def test_the_kept_sets_by_their_definitions(seed, k, p):
  rng = np.random.default_rng(seed)
  logp_V = np.log(rng.dirichlet(np.full(12, 0.5)).astype(np.float32) + 1e-6)
  logp_V = np.round(logp_V, 1)  # so that some are equal
  share_V = np.exp(logp_V) / np.exp(logp_V).sum()

  def kept(keep, limit):
    found = jnp.isfinite(keep(jnp.asarray(logp_V)[None], limit))[0]
    return set(np.flatnonzero(found))

  better_V = (logp_V[:, None] < logp_V).sum(axis=1)  # tokens likelier than it
  assert kept(keep_top_k, k) == set(np.flatnonzero(better_V < k))
  mass_V = np.where(logp_V[:, None] < logp_V, share_V, 0).sum(axis=1)
  nucleus = kept(keep_top_p, p)
  # Rounding decides where the sum is p within a millionth.
  assert nucleus >= set(np.flatnonzero(mass_V < p - 1e-6))
  assert nucleus <= set(np.flatnonzero(mass_V < p + 1e-6))
  ratio_V = share_V / share_V.max()
  near = kept(keep_min_p, p)
  assert near >= set(np.flatnonzero(ratio_V > p + 1e-6))
  assert near <= set(np.flatnonzero(ratio_V > p - 1e-6))


def test_all_filters_apply_and_all_that_is_kept_occurs():
  assert set(_draws(2000, top_k=3, top_p=0.6)) == {0, 1}
  assert set(_draws(2000, top_k=5, min_p=0.3)) == {0, 1, 2}
  # Temperature comes first: here all tokens are nearly equally likely.
  assert set(_draws(2000, temperature=50.0, min_p=0.9)) == set(range(6))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': -0.1}, 'temperature must be a number of at least 0'),
    ({'temperature': float('nan')}, 'temperature'),
    ({'temperature': float('inf')}, 'temperature'),
    ({'top_k': 0}, 'top_k must be at least 1, found 0'),
    ({'top_p': 0.0}, 'top_p must be in'),
    ({'top_p': 1.1}, 'top_p must be in'),
    ({'min_p': 0.0}, 'min_p must be in'),
    ({'min_p': 2.0}, 'min_p must be in'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(InputError, match=message):
    Sampling(**options)
