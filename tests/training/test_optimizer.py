"""Learning rates against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import OptimizerConfig
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.schedules import make_schedule

PEAK, FINAL, STEPS = 2.5e-4, 1e-5, 1000


def _config(schedule: str, warmup: int, **rest) -> OptimizerConfig:
  return OptimizerConfig(
    **{'learning_rate': PEAK, 'final_learning_rate': FINAL, **rest},
    schedule=schedule,
    warmup_steps=warmup,
  )


def _half_cosine(done: int, of: int) -> float:
  wave = (1 + math.cos(math.pi * min(done, of) / of)) / 2
  return FINAL + (PEAK - FINAL) * wave


def _cosine(count: int, warmup: int) -> float:
  if count < warmup:
    return PEAK * (count + 1) / warmup
  return _half_cosine(count - warmup, STEPS - warmup)


def _cosine_official(count: int, warmup: int) -> float:
  if count < warmup:
    return PEAK * count / warmup
  return _half_cosine(count, STEPS)


FORMS = [('cosine', _cosine), ('cosine_official', _cosine_official)]


@pytest.mark.parametrize('warmup', [0, 1, 10, 400])
@pytest.mark.parametrize(('name', 'form'), FORMS)
def test_closed_forms(name, form, warmup):
  schedule = make_schedule(_config(name, warmup), STEPS)
  counts = {0, 1, 5, 9, 10, 11, 399, 400, 401, 500, 700, 998, 999, 1000, 1500}
  compiled = jax.jit(schedule)
  for count in sorted(counts):
    expected = form(count, warmup)
    rate = float(schedule(count))
    assert rate == pytest.approx(expected, rel=2e-6, abs=1e-12), count
    rate = float(compiled(jnp.int32(count)))
    assert rate == pytest.approx(expected, rel=2e-6, abs=1e-12), count


def test_where_the_schedules_begin_peak_and_end():
  shifted = make_schedule(_config('cosine', 100), STEPS)
  official = make_schedule(_config('cosine_official', 100), STEPS)
  # The first update of the official schedule has the rate 0.
  assert float(shifted(0)) == pytest.approx(PEAK / 100)
  assert float(official(0)) == 0
  # The shifted one reaches the peak, the other falls short of it.
  assert float(shifted(100)) == pytest.approx(PEAK)
  assert max(float(official(i)) for i in range(0, STEPS, 5)) < 0.99 * PEAK
  for schedule in (shifted, official):
    assert float(schedule(STEPS)) == pytest.approx(FINAL, rel=1e-6)
    assert float(schedule(10 * STEPS)) == pytest.approx(FINAL, rel=1e-6)
    assert FINAL < float(schedule(STEPS - 1)) < 1.01 * FINAL


def test_without_a_final_rate_the_end_is_zero():
  config = _config('cosine', 10, final_learning_rate=0.0)
  assert float(make_schedule(config, STEPS)(STEPS)) == 0


@pytest.mark.parametrize('name', ['cosine', 'cosine_official'])
def test_a_warmup_longer_than_the_run_only_ramps(name):
  schedule = make_schedule(_config(name, 20), 10)
  rates = [float(schedule(i)) for i in range(10)]
  np.testing.assert_allclose(np.diff(rates), PEAK / 20, rtol=1e-5)
  assert rates[-1] < PEAK / 2 + 1e-9


@pytest.mark.parametrize(('name', 'form'), FORMS)
def test_the_optimizer_follows_the_schedule(name, form):
  config = _config(name, 3, epsilon=1e-30, clip_norm=1e9)
  optimizer = make_optimizer(config, STEPS)
  params = {'w': jnp.zeros(2)}
  state = optimizer.init(params)
  gradient = {'w': jnp.array([2.0, -0.5])}
  # Under a constant gradient Adam moves by the rate, against its sign.
  for count in range(8):
    updates, state = optimizer.update(gradient, state, params)
    expected = form(count, 3) * np.array([-1, 1])
    np.testing.assert_allclose(updates['w'], expected, rtol=1e-5, atol=1e-12)


def test_the_optimizer_is_adam_with_the_given_moments():
  config = _config('cosine', 0, b1=0.5, b2=0.75, epsilon=0.1, clip_norm=1e9)
  optimizer = make_optimizer(config, STEPS)
  state = optimizer.init(jnp.zeros(()))
  mean = square = 0.0
  for count, gradient in enumerate([1.0, -2.0, 0.25]):
    update, state = optimizer.update(jnp.float32(gradient), state)
    mean = 0.5 * mean + 0.5 * gradient
    square = 0.75 * square + 0.25 * gradient**2
    m = mean / (1 - 0.5 ** (count + 1))
    v = square / (1 - 0.75 ** (count + 1))
    expected = -_cosine(count, 0) * m / (math.sqrt(v) + 0.1)
    assert float(update) == pytest.approx(expected, rel=1e-5)


def test_sgd_has_momentum():
  config = _config('cosine', 0, name='sgd', b1=0.5, clip_norm=1e9)
  optimizer = make_optimizer(config, STEPS)
  state, velocity = optimizer.init(jnp.zeros(())), 0.0
  for count, gradient in enumerate([1.0, -2.0, 0.25]):
    update, state = optimizer.update(jnp.float32(gradient), state)
    velocity = 0.5 * velocity + gradient
    expected = -_cosine(count, 0) * velocity
    assert float(update) == pytest.approx(expected, rel=1e-5)


def test_lamb_moves_each_array_by_its_own_norm():
  config = _config('cosine', 0, name='lamb', epsilon=1e-30, clip_norm=1e9)
  optimizer = make_optimizer(config, STEPS)
  params = {'small': jnp.full(4, 0.5), 'large': jnp.full(4, 8.0)}
  gradient = {'small': jnp.full(4, 3.0), 'large': jnp.full(4, -0.1)}
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(updates['small'], -PEAK * 0.5, rtol=1e-5)
  np.testing.assert_allclose(updates['large'], PEAK * 8.0, rtol=1e-5)
