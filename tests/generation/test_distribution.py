"""Draws have the distribution that the model gives to the whole vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import txl_jax
from txl_jax.generation.sampling import Sampling, draw
from txl_jax.model import drawing

N_DRAWS = 200_000
SIZES = dict(n_layers=1, n_heads=1, d_model=16, d_head=8, d_ff=8)
ONE_SOFTMAX = {}
ADAPTIVE = {'cutoffs': (6, 20), 'div_val': 2}


@functools.cache
def _model(**softmax) -> tuple[txl_jax.ModelConfig, dict, jax.Array]:
  """A model, its parameters and a hidden state."""
  config = txl_jax.ModelConfig(
    vocab_size=40, init_std=0.2, projection_init_std=0.3, **SIZES, **softmax
  )
  params = txl_jax.init_params(config, jax.random.key(0))
  hidden_D = jax.random.normal(jax.random.key(1), config.d_model)
  return config, params, hidden_D


def _draws(softmax: dict, n: int, **options) -> tuple[np.ndarray, np.ndarray]:
  config, params, hidden_D = _model(**softmax)
  keys_B = jax.random.split(jax.random.key(2), n)
  hidden_BD = jnp.tile(hidden_D, (n, 1))
  sampling = Sampling(**options)
  drawn = jax.jit(draw, static_argnums=(0, 2))
  return jax.device_get(drawn(config, params, sampling, hidden_BD, keys_B))


def _log_probs(softmax: dict) -> np.ndarray:
  config, params, hidden_D = _model(**softmax)
  logp_11V = txl_jax.TransformerXL(config).apply(
    {'params': params}, hidden_D[None, None], method='log_probs'
  )
  return np.asarray(logp_11V[0, 0], np.float64)


def _p_value(tokens_B: np.ndarray, probability_V: np.ndarray) -> float:
  found_V = np.bincount(tokens_B, minlength=len(probability_V))
  expected_V = probability_V * len(tokens_B)
  # As is usual, what is expected fewer than five times is counted together.
  rare_V = expected_V < 5
  found = np.append(found_V[~rare_V], found_V[rare_V].sum())
  expected = np.append(expected_V[~rare_V], expected_V[rare_V].sum())
  known = expected > 0
  assert found[~known].sum() == 0
  expected *= found.sum() / expected.sum()
  return stats.chisquare(found[known], expected[known]).pvalue


@pytest.mark.parametrize('softmax', [ONE_SOFTMAX, ADAPTIVE], ids=str)
def test_frequencies_match_the_probabilities(softmax):
  logp_V = _log_probs(softmax)
  tokens_B, logp_B = _draws(softmax, N_DRAWS)
  assert len(set(tokens_B)) > 35
  assert _p_value(tokens_B, np.exp(logp_V)) > 1e-3
  np.testing.assert_allclose(logp_B, logp_V[tokens_B], rtol=1e-5)
  # The test would notice a difference of a tenth in one common token.
  wrong_V = np.exp(logp_V)
  wrong_V[wrong_V.argmax()] *= 1.1
  assert _p_value(tokens_B, wrong_V / wrong_V.sum()) < 1e-6


@pytest.mark.parametrize('softmax', [ONE_SOFTMAX, ADAPTIVE], ids=str)
@pytest.mark.parametrize(
  'options',
  [{'temperature': 0.6}, {'top_k': 9}, {'top_p': 0.7}, {'min_p': 0.3}],
  ids=str,
)
def test_frequencies_of_what_is_kept(softmax, options):
  logp_V = _log_probs(softmax)
  probability_V = np.exp(logp_V / options.get('temperature', 1))
  probability_V /= probability_V.sum()
  order_V = np.argsort(-probability_V)
  before_V = np.cumsum(probability_V[order_V]) - probability_V[order_V]
  kept = {
    'top_k': order_V[:9],
    'top_p': order_V[before_V < 0.7],
    'min_p': order_V[probability_V[order_V] >= 0.3 * probability_V.max()],
  }.get(next(iter(options)), order_V)
  expected_V = np.zeros_like(probability_V)
  expected_V[kept] = probability_V[kept] / probability_V[kept].sum()
  tokens_B, logp_B = _draws(softmax, 20_000, **options)
  assert _p_value(tokens_B, expected_V) > 1e-3
  # Of the model itself, whatever the options.
  np.testing.assert_allclose(logp_B, logp_V[tokens_B], rtol=1e-5)


def test_a_tail_is_opened_only_if_it_has_been_drawn(monkeypatch):
  computed, log_softmax = [], drawing.log_softmax

  def recorded(hidden_BTD, parts, *rest):
    jax.debug.callback(functools.partial(computed.append, sum(map(len, parts))))
    return log_softmax(hidden_BTD, parts, *rest)

  monkeypatch.setattr(drawing, 'log_softmax', recorded)
  config, params, hidden_D = _model(**ADAPTIVE)
  one = jax.jit(
    lambda key: draw(config, params, Sampling(), hidden_D[None], key)
  )
  opened = []
  for key in jax.random.split(jax.random.key(2), 30):
    token_B, _ = one(key[None])
    jax.effects_barrier()
    cluster = int((token_B[0] >= np.array(config.cutoffs)).sum())
    # The head has 6 words and 2 clusters, the tails have 14 and 20 words.
    assert computed == [[8], [8, 14], [8, 20]][cluster]
    opened.append(cluster)
    computed.clear()
  assert set(opened) == {0, 1, 2}
