"""Learning rates beside the cosine, plateaus, and averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import OptimizerConfig
from txl_jax.training.averaging import (
  averaged,
  init_average,
  update_average,
)
from txl_jax.training.schedules import (
  after_validation,
  in_steps,
  init_plateau,
  make_schedule,
)


def _rates(counts: list[int], **fields) -> list[float]:
  config = OptimizerConfig(learning_rate=1.0, **fields)
  schedule = jax.jit(make_schedule(config, 100))
  return [float(schedule(jnp.int32(count))) for count in counts]


def test_linear_decay():
  fields = dict(schedule='linear', warmup_steps=20, final_learning_rate=0.2)
  found = _rates([0, 9, 19, 20, 60, 100, 500], **fields)
  np.testing.assert_allclose(found, [0.05, 0.5, 1, 1, 0.6, 0.2, 0.2], rtol=1e-6)


def test_inverse_square_root():
  found = _rates([0, 3, 4, 15, 399], schedule='inverse_square_root')
  expected = [1, 1 / 2, 5**-0.5, 1 / 4, 1 / 20]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  fields = dict(schedule='inverse_square_root', warmup_steps=4)
  found = _rates([0, 3, 15, 63], **fields, final_learning_rate=0.3)
  np.testing.assert_allclose(found, [1 / 4, 1, 1 / 2, 0.3], rtol=1e-6)


@pytest.mark.parametrize('schedule', ['constant', 'plateau'])
def test_constant_after_the_warm_up(schedule):
  found = _rates([0, 1, 5, 99], schedule=schedule, warmup_steps=2)
  np.testing.assert_allclose(found, [0.5, 1, 1, 1])


def test_warm_up_in_tokens():
  config = OptimizerConfig(warmup_tokens=1001)
  assert in_steps(config, 100).warmup_steps == 11
  assert in_steps(OptimizerConfig(warmup_steps=7), 100).warmup_steps == 7


def test_a_plateau_lowers_the_rate():
  config = OptimizerConfig(
    learning_rate=1.0,
    final_learning_rate=0.2,
    plateau_factor=0.5,
    plateau_patience=1,
  )
  plateau, scales = init_plateau(), []
  step = jax.jit(after_validation, static_argnums=0)
  for loss in [3.0, 2.0, 2.0, 2.5, 1.9, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]:
    plateau = step(config, plateau, loss)
    scales.append(float(plateau.scale))
  expected = [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
  np.testing.assert_allclose(scales, expected)
  assert jax.tree.map(lambda x: x.dtype, plateau) == jax.tree.map(
    lambda x: x.dtype, init_plateau()
  )


def _average(path: np.ndarray, **fields) -> list[np.ndarray]:
  config = OptimizerConfig(**fields)
  average, found = init_average(config, {'w': jnp.zeros(3)}), []
  for step, point in enumerate(path):
    params = {'w': jnp.asarray(point)}
    args = (average, params, jnp.int32(step), len(path))
    average = update_average(config, *args)
    found.append(np.asarray(averaged(config, average, params)['w']))
  return found


@pytest.fixture
def path() -> np.ndarray:
  """Parameters after each of twelve updates."""
  return np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def test_the_exponential_average_weighs_by_age(path):
  found = _average(path, average='ema', average_decay=0.8)
  for step in range(12):
    weight = 0.8 ** np.arange(step, -1, -1)
    expected = weight @ path[: step + 1] / weight.sum()
    np.testing.assert_allclose(found[step], expected, rtol=1e-4, atol=1e-6)


def test_the_tail_is_an_equal_mean(path):
  found = _average(path, average='tail', average_last_fraction=0.5)
  for step in range(12):
    expected = path[6 : step + 1].mean(0) if step >= 6 else path[step]
    np.testing.assert_allclose(found[step], expected, rtol=1e-4, atol=1e-6)


def test_without_an_average_the_parameters_are_evaluated():
  config = OptimizerConfig()
  assert init_average(config, {}) is None
  assert averaged(config, None, {'w': 1}) == {'w': 1}
