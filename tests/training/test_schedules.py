"""Learning rates against their closed forms, and what validations do."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import OptimizerConfig
from txl_jax.errors import InputError
from txl_jax.training.schedules import (
  Plateau,
  after_validation,
  in_steps,
  init_plateau,
  make_schedule,
  steps_for,
)

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


def _cosine_official(count: int, warmup: int) -> float:
  if count < warmup:
    return PEAK * count / warmup
  return _half_cosine(count, STEPS)


def _warmed(after: Callable[[int, int], float]) -> Callable:
  def form(count: int, warmup: int) -> float:
    return (
      PEAK * (count + 1) / warmup if count < warmup else after(count, warmup)
    )

  return form


def _linear(count: int, warmup: int) -> float:
  done = min((count - warmup) / (STEPS - warmup), 1)
  return PEAK + (FINAL - PEAK) * done


FORMS = {
  'cosine': _warmed(lambda c, w: _half_cosine(c - w, STEPS - w)),
  'cosine_official': _cosine_official,
  'linear': _warmed(_linear),
  'inverse_square_root': _warmed(
    lambda c, w: max(PEAK * math.sqrt(max(w, 1) / (c + 1)), FINAL)
  ),
  'constant': _warmed(lambda c, w: PEAK),
  'plateau': _warmed(lambda c, w: PEAK),
}
COUNTS = [0, 1, 5, 9, 10, 11, 399, 400, 401, 500, 700, 998, 999, 1000, 1500]


@pytest.mark.parametrize('warmup', [0, 1, 10, 400])
@pytest.mark.parametrize('name', FORMS)
def test_closed_forms(name, warmup):
  schedule = make_schedule(_config(name, warmup), STEPS)
  expected = [FORMS[name](count, warmup) for count in COUNTS]
  rates = jax.jit(jax.vmap(schedule))(jnp.array(COUNTS, jnp.int32))
  np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-12)
  # As the progress line asks for it.
  rates = [float(schedule(count)) for count in COUNTS[3:7]]
  np.testing.assert_allclose(rates, expected[3:7], rtol=2e-6, atol=1e-12)


def test_where_the_cosines_begin_peak_and_end():
  shifted = make_schedule(_config('cosine', 100), STEPS)
  official = make_schedule(_config('cosine_official', 100), STEPS)
  # The first update of the official schedule has the rate 0.
  assert float(shifted(0)) == pytest.approx(PEAK / 100)
  assert float(official(0)) == 0
  # The shifted one reaches the peak, the other falls short of it.
  assert float(shifted(100)) == pytest.approx(PEAK)
  assert float(jax.vmap(official)(jnp.arange(STEPS)).max()) < 0.995 * PEAK
  for schedule in (shifted, official):
    assert float(schedule(STEPS)) == pytest.approx(FINAL, rel=1e-6)
    assert float(schedule(10 * STEPS)) == pytest.approx(FINAL, rel=1e-6)
    assert FINAL < float(schedule(STEPS - 1)) < 1.01 * FINAL


@pytest.mark.parametrize('name', ['cosine', 'cosine_official', 'linear'])
def test_without_a_final_rate_the_end_is_zero(name):
  config = _config(name, 10, final_learning_rate=0.0)
  assert float(make_schedule(config, STEPS)(STEPS)) == 0


@pytest.mark.parametrize('name', FORMS)
def test_a_warmup_longer_than_the_run_only_ramps(name):
  schedule = make_schedule(_config(name, 20), 10)
  rates = np.array(jax.vmap(schedule)(jnp.arange(10)))
  np.testing.assert_allclose(np.diff(rates), PEAK / 20, rtol=1e-5)
  assert rates[-1] < PEAK / 2 + 1e-9


@pytest.mark.parametrize(
  ('tokens', 'steps'), [(0, 0), (1, 1), (64, 1), (65, 2), (6400, 100)]
)
def test_tokens_are_counted_in_whole_steps(tokens, steps):
  assert steps_for(tokens, 64) == steps
  config = _config('linear', 7, warmup_tokens=tokens)
  assert in_steps(config, 64) == _config('linear', steps)


def test_a_run_in_tokens_is_the_run_in_steps():
  config = _config('cosine', 0, warmup_tokens=3200)
  run = steps_for(64_000, 64)
  found = make_schedule(in_steps(config, 64), run)
  expected = make_schedule(_config('cosine', 50), STEPS)
  counts = jnp.array(COUNTS)
  assert jax.vmap(found)(counts).tolist() == jax.vmap(expected)(counts).tolist()


def test_without_tokens_nothing_is_converted():
  config = _config('cosine', 5)
  assert in_steps(config, 64) is config


def test_tokens_that_nobody_converted_are_refused():
  config = _config('cosine', 5, warmup_tokens=3)
  with pytest.raises(InputError, match='config.optimizer.warmup_tokens'):
    make_schedule(config, STEPS)


def _scales(losses: list[float], **fields) -> list[float]:
  """The scale after each validation."""
  config = _config('plateau', 0, plateau_factor=0.25, **fields)
  step = jax.jit(lambda plateau, loss: after_validation(config, plateau, loss))
  plateau, scales = init_plateau(), []
  for loss in losses:
    plateau = step(plateau, loss)
    scales.append(float(plateau.scale))
  return scales


def test_a_plateau_reduces_the_rate():
  nan = float('nan')
  losses = [5, 4, 4.5, 3, 3, 4, nan, 3.5, 2.9, 1]
  expected = [1, 1, 1, 1, 1, 0.25, 0.25, 1 / 16, 1 / 16, 1 / 16]
  found = _scales(losses, plateau_patience=2, final_learning_rate=0.0)
  assert found == expected
  expected = [1, 1, 0.25, 0.25, 1 / 16]
  assert _scales(losses[:5], final_learning_rate=0.0) == expected


def test_the_rate_falls_no_lower_than_the_final_one():
  found = _scales([1] * 9)
  assert found[0] == 1
  assert found[-1] == pytest.approx(FINAL / PEAK)
  above = _scales([1] * 9, final_learning_rate=2 * PEAK)
  assert above == [1] * 9


def test_other_schedules_ignore_validations():
  plateau = init_plateau()
  for name in set(FORMS) - {'plateau'}:
    assert after_validation(_config(name, 0), plateau, 9.0) is plateau


def test_a_plateau_goes_on_from_its_arrays():
  """It can be saved: three scalars are all it remembers."""
  config = _config('plateau', 0, plateau_patience=2)
  plateau = init_plateau()
  for loss in (3.0, 4.0):
    plateau = after_validation(config, plateau, loss)
  leaves = {
    f.name: getattr(plateau, f.name) for f in dataclasses.fields(Plateau)
  }
  dtypes = {name: str(leaf.dtype) for name, leaf in leaves.items()}
  assert dtypes == {'scale': 'float32', 'best': 'float32', 'waited': 'int32'}
  assert all(leaf.shape == () for leaf in leaves.values())
  again = Plateau(**{name: np.array(leaf) for name, leaf in leaves.items()})
  again = after_validation(config, again, 5.0)
  assert float(again.scale) == 0.5
