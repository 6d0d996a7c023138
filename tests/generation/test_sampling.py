"""Which tokens can be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.errors import InputError
from txl_jax.generation.sampling import (
  check_options,
  keep_top_k,
  keep_top_p,
  sample,
)

PROBABILITY_V = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


def _draws(n: int, **options) -> np.ndarray:
  options = {'temperature': 1.0, 'top_k': None, 'top_p': None, **options}
  logp_BV = jnp.log(jnp.tile(PROBABILITY_V, (n, 1)))
  keys_B = jax.random.split(jax.random.key(0), n)
  return np.asarray(jax.jit(lambda *a: sample(*a, **options))(logp_BV, keys_B))


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


def test_both_apply_and_all_that_is_kept_occurs():
  drawn = _draws(2000, top_k=3, top_p=0.6)
  assert set(drawn) == {0, 1}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ((-0.1, None, None), 'temperature must be at least 0, found -0.1'),
    ((float('nan'), None, None), 'temperature'),
    ((1.0, 0, None), 'top_k must be at least 1, found 0'),
    ((1.0, None, 0.0), 'top_p must be in'),
    ((1.0, None, 1.1), 'top_p must be in'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(InputError, match=message):
    check_options(*options)
