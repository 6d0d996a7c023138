"""Averages of parameters against means by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import OptimizerConfig
from txl_jax.training.averaging import averaged, init_average, update_average

STEPS = 40
# The parameters after each update; row 0 is the beginning.
HISTORY = np.random.default_rng(0).normal(size=(STEPS + 1, 3)).astype('float32')


def _averages(config: OptimizerConfig, history=HISTORY) -> list[np.ndarray]:
  """What is evaluated after 0, 1, ... updates."""
  tree = {'layers': {'w': jnp.array(history[0])}}
  average = init_average(config, tree)
  update = jax.jit(
    lambda average, params, step: update_average(
      config, average, params, step, STEPS
    )
  )
  found = []
  for step, params in enumerate(history):
    tree = {'layers': {'w': jnp.array(params)}}
    if step:
      average = update(average, tree, step)
    found.append(np.array(averaged(config, average, tree)['layers']['w']))
  return found


@pytest.mark.parametrize('decay', [0.5, 0.9, 0.9999, 1e-3])
def test_ema_is_the_weighted_mean_of_all_updates(decay):
  found = _averages(OptimizerConfig(average='ema', average_decay=decay))
  for n in range(1, STEPS + 1):
    weights = decay ** np.arange(n - 1, -1, -1.0)
    expected = np.average(HISTORY[1 : n + 1], axis=0, weights=weights)
    np.testing.assert_allclose(found[n], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
  ('fraction', 'length'), [(0.25, 10), (1.0, 40), (0.1, 4), (1e-6, 1)]
)
def test_the_tail_is_the_mean_of_its_updates(fraction, length):
  config = OptimizerConfig(average='tail', average_last_fraction=fraction)
  found, first = _averages(config), STEPS - length + 1
  for n in range(STEPS + 1):
    if n < first:
      np.testing.assert_array_equal(found[n], HISTORY[n])
    else:
      expected = HISTORY[first : n + 1].mean(axis=0)
      np.testing.assert_allclose(found[n], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('average', ['ema', 'tail', 'none'])
def test_what_stands_still_keeps_its_bits(average):
  """Frozen parameters are averaged like the others."""
  history = np.broadcast_to(HISTORY[0], HISTORY.shape)
  for found in _averages(OptimizerConfig(average=average), history):
    np.testing.assert_array_equal(found, HISTORY[0])


def test_without_an_average_the_newest_parameters_count():
  config = OptimizerConfig()
  assert init_average(config, {'w': jnp.ones(2)}) is None
  assert update_average(config, None, {'w': jnp.ones(2)}, 1, 2) is None
  np.testing.assert_array_equal(_averages(config), HISTORY)


@pytest.mark.parametrize('average', ['ema', 'tail'])
def test_an_average_has_arrays_of_its_own(average):
  """Else parameters and average could not both be donated."""
  config = OptimizerConfig(average=average)
  params = {'w': jnp.ones(4), 'v': jnp.ones(2)}
  tree = init_average(config, params)
  pointers = [
    leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, tree))
  ]
  assert len(set(pointers)) == len(pointers)
  update = jax.jit(
    lambda params, average: (
      params,
      update_average(config, average, params, 1, 2),
    ),
    donate_argnums=(0, 1),
  )
  params, tree = update(*update(params, tree))
  np.testing.assert_array_equal(tree['params']['w'], params['w'])


@pytest.mark.parametrize('average', ['ema', 'tail'])
def test_averages_are_kept_in_float32(average):
  config = OptimizerConfig(average=average)
  params = {'w': jnp.full(4, 0.3, jnp.bfloat16)}
  tree = init_average(config, params)
  for step in (1, 2):
    assert tree['params']['w'].dtype == jnp.float32
    assert tree['count'].dtype == jnp.int32
    tree = update_average(config, tree, params, step, 2)
  np.testing.assert_array_equal(tree['params']['w'], params['w'])


def test_a_run_cut_short_averages_the_tail_that_is_left():
  config = OptimizerConfig(average='tail', average_last_fraction=0.5)
  average = init_average(config, {'w': HISTORY[0]})
  for step in range(1, 13):
    # After update 8 the run of 40 updates is to end with the 12th.
    steps = 40 if step <= 8 else 12
    params = {'w': jnp.array(HISTORY[step])}
    average = update_average(config, average, params, step, steps)
  expected = HISTORY[9:13].mean(axis=0)
  np.testing.assert_allclose(average['params']['w'], expected, rtol=1e-5)
