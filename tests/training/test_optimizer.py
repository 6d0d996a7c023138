"""The optimizers against optax's own, layer by layer, and against NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from txl_jax.config import OptimizerConfig
from txl_jax.training import groups
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.schedules import make_schedule

RATE, STEPS = 0.01, 1000
# Of each kind of parameter one.
SHAPES = {
  'layers': {
    'attention': {'query': (2, 4, 2, 3), 'content_bias': (2, 2, 3)},
    'attention_norm': {'bias': (2, 4), 'scale': (2, 4)},
  },
  'embedding': {'table_0': (7, 3), 'projection_0': (3, 4)},
  'softmax': {'bias': (7,), 'cluster_weight': (2, 4)},
}
DECAYED = {'query', 'table_0', 'projection_0', 'cluster_weight'}
# Two axes of at least 32, which Adafactor factors.
WIDE = {
  'layers': {'attention': {'query': (2, 33, 2, 34), 'key': (2, 3, 2, 4)}},
  'embedding': {'table_0': (40, 32)},
  'softmax': {'bias': (40,)},
}


def _config(name: str = 'adam', **rest) -> OptimizerConfig:
  """No clipping, unless asked for."""
  fields = {'learning_rate': RATE, 'schedule': 'linear', 'clip_norm': None}
  return OptimizerConfig(**{'name': name, **fields, **rest})


def _random(shapes: dict, seed: int) -> dict:
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.array(rng.normal(size=shape), jnp.float32),
    shapes,
    is_leaf=lambda leaf: isinstance(leaf, tuple),
  )


@pytest.fixture(scope='module')
def params() -> dict:
  return _random(SHAPES, 0)


@pytest.fixture(scope='module')
def gradients() -> list[dict]:
  return [_random(SHAPES, seed) for seed in (1, 2)]


def _walk(optimizer, params: Any, gradients: list) -> list:
  """Updates for gradients that come one after another."""

  @jax.jit
  def step(params: Any, state: Any, gradient: Any) -> tuple:
    updates, state = optimizer.update(gradient, state, params)
    return updates, optax.apply_updates(params, updates), state

  state, found = jax.jit(optimizer.init)(params), []
  for gradient in gradients:
    updates, params, state = step(params, state, gradient)
    found.append(updates)
  return found


def _by_path(tree: Any) -> dict:
  return dict(zip(groups.paths(tree), jax.tree.leaves(tree)))


def _assert_close(found: Any, expected: Any) -> None:
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for path, leaf in _by_path(found).items():
    np.testing.assert_allclose(
      leaf, _by_path(expected)[path], rtol=5e-5, atol=1e-8, err_msg=path
    )


def _decays(params: Any) -> Any:
  return groups.map_paths(lambda path: path.split('/')[-1] in DECAYED, params)


def _reference(name: str) -> optax.GradientTransformation:
  rate = optax.linear_schedule(RATE, 0.0, STEPS)
  penalty = optax.add_decayed_weights(0.1, _decays)
  return {
    'adam': optax.chain(penalty, optax.adam(rate, 0.8, 0.99, 1e-6)),
    'adamw': optax.adamw(rate, 0.8, 0.99, 1e-6, weight_decay=0.1, mask=_decays),
    'sgd': optax.chain(penalty, optax.sgd(rate, 0.8)),
  }[name]


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_the_updates_are_those_of_optax(name, params, gradients):
  config = _config(name, b1=0.8, b2=0.99, epsilon=1e-6, weight_decay=0.1)
  found = _walk(make_optimizer(config, STEPS), params, gradients)
  expected = _walk(_reference(name), params, gradients)
  _assert_close(found, expected)


def _unstacked(tree: dict) -> dict:
  """With a tree for each layer."""
  count = jax.tree.leaves(tree['layers'])[0].shape[0]

  def layer(i: int) -> dict:
    return jax.tree.map(lambda leaf: leaf[i], tree['layers'])

  return {**tree, 'layers': [layer(i) for i in range(count)]}


@pytest.mark.parametrize('name', ['lamb', 'adafactor'])
def test_layers_are_apart_although_they_are_stacked(name):
  params, first, second = (_random(WIDE, seed) for seed in range(3))
  # Layers of different size, whose common norm would not do.
  params['layers'] = jax.tree.map(
    lambda leaf: leaf * jnp.array([3.0, 0.1])[:, None, None, None],
    params['layers'],
  )
  optimizer = make_optimizer(_config(name), STEPS)
  found = _walk(optimizer, params, [first, second])
  rate = optax.linear_schedule(RATE, 0.0, STEPS)
  plain = {
    'lamb': optax.lamb(rate, eps=1e-8),
    'adafactor': optax.adafactor(rate, min_dim_size_to_factor=32),
  }[name]
  expected = _walk(
    plain, _unstacked(params), [_unstacked(first), _unstacked(second)]
  )
  for one, other in zip(found, expected):
    _assert_close(_unstacked(one), other)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'muon'])
def test_weight_decay_is_a_part_of_the_parameter(name, params, gradients):
  """Added to the update: rate times decay, where the mask allows it."""
  first = gradients[:1]
  (plain,) = _walk(make_optimizer(_config(name), STEPS), params, first)
  config = _config(name, weight_decay=0.5)
  (found,) = _walk(make_optimizer(config, STEPS), params, first)
  expected = jax.tree.map(
    lambda update, param, decays: update - RATE * 0.5 * param * decays,
    *(plain, params, _decays(params)),
  )
  _assert_close(found, expected)


def test_which_parameters_decay_can_be_chosen(params, gradients):
  config = _config('adamw', weight_decay=0.5, undecayed=('(?!softmax).*',))
  (found,) = _walk(make_optimizer(config, STEPS), params, gradients[:1])
  (plain,) = _walk(make_optimizer(_config(), STEPS), params, gradients[:1])
  for path, update in _by_path(found).items():
    changed = not np.array_equal(update, _by_path(plain)[path])
    assert changed == path.startswith('softmax/'), path


@pytest.mark.parametrize('clip_norm', [0.5, 1e4, None])
def test_the_global_norm_is_clipped(clip_norm, params, gradients):
  config = _config('sgd', b1=0.0, schedule='constant', clip_norm=clip_norm)
  found = _walk(make_optimizer(config, STEPS), params, gradients)
  for updates, gradient in zip(found, gradients):
    leaves = map(np.array, jax.tree.leaves(gradient))
    norm = math.sqrt(sum((leaf**2).sum() for leaf in leaves))
    assert 0.5 < norm < 1e4
    by = -RATE * min(1, (clip_norm or norm) / norm)
    for path, update in _by_path(updates).items():
      expected = by * np.array(_by_path(gradient)[path])
      np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.parametrize('schedule', ['cosine', 'cosine_official', 'constant'])
def test_the_optimizer_follows_the_schedule(schedule):
  config = _config(schedule=schedule, warmup_steps=3, epsilon=1e-30)
  params = {'w': jnp.zeros(2)}
  gradient = {'w': jnp.array([2.0, -0.5])}
  found = _walk(make_optimizer(config, 20), params, [gradient] * 8)
  rates = make_schedule(config, 20)
  # Under a constant gradient Adam moves by the rate, against its sign.
  for count, updates in enumerate(found):
    expected = float(rates(count)) * np.array([-1, 1])
    np.testing.assert_allclose(updates['w'], expected, rtol=2e-5, atol=1e-12)


def test_the_optimizer_is_adam_with_the_given_moments():
  config = _config(b1=0.5, b2=0.75, epsilon=0.1, schedule='constant')
  optimizer = make_optimizer(config, STEPS)
  state = optimizer.init(jnp.zeros(()))
  mean = square = 0.0
  for count, gradient in enumerate([1.0, -2.0, 0.25]):
    update, state = optimizer.update(jnp.float32(gradient), state)
    mean = 0.5 * mean + 0.5 * gradient
    square = 0.75 * square + 0.25 * gradient**2
    m = mean / (1 - 0.5 ** (count + 1))
    v = square / (1 - 0.75 ** (count + 1))
    expected = -RATE * m / (math.sqrt(v) + 0.1)
    assert float(update) == pytest.approx(expected, rel=1e-5)


def test_sgd_has_momentum():
  config = _config('sgd', b1=0.5, schedule='constant')
  optimizer = make_optimizer(config, STEPS)
  state, velocity = optimizer.init(jnp.zeros(())), 0.0
  for gradient in [1.0, -2.0, 0.25]:
    update, state = optimizer.update(jnp.float32(gradient), state)
    velocity = 0.5 * velocity + gradient
    assert float(update) == pytest.approx(-RATE * velocity, rel=1e-5)
