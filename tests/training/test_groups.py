"""Every optimizer, and what applies to some parameters only."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import txl_jax
from txl_jax.config import ModelConfig, OptimizerConfig
from txl_jax.conversion import default_config, from_config_dict
from txl_jax.errors import InputError
from txl_jax.overrides import apply_overrides
from txl_jax.parallel.partition import path_name
from txl_jax.training.optimizer import make_optimizer, matrix_axes

MODEL = ModelConfig(
  vocab_size=30,
  n_layers=2,
  n_heads=2,
  d_model=8,
  d_head=4,
  d_ff=12,
  cutoffs=(10,),
  div_val=2,
)
NAMES = ['adam', 'adamw', 'lamb', 'adafactor', 'sgd', 'muon']


@pytest.fixture(scope='module')
def params() -> dict:
  """Of a small model with an adaptive softmax."""
  return txl_jax.init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope='module')
def gradients(params) -> dict:
  """Of the size of the parameters."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), params
  )


def _update(params, gradients, **fields) -> dict:
  config = OptimizerConfig(
    **{'learning_rate': 0.1, 'clip_norm': None, **fields}
  )
  optimizer = make_optimizer(config, 1000)
  state = optimizer.init(params)
  assert all(leaf.size for leaf in jax.tree.leaves(state))
  return jax.jit(optimizer.update)(gradients, state, params)[0]


def _paths(tree, is_leaf=None) -> dict[str, Any]:
  pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {path_name(path): leaf for path, leaf in pairs}


@pytest.mark.parametrize('name', NAMES)
def test_each_optimizer_goes_downhill(params, gradients, name):
  updates = _update(params, gradients, name=name)
  for path, update in _paths(updates).items():
    assert (update * _paths(gradients)[path]).sum() < 0, path


def test_adam_is_the_formula(params, gradients):
  updates = _update(params, gradients, name='adam', epsilon=1e-3)
  for update, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradients)):
    expected = -0.1 * g / (np.abs(g) + 1e-3)
    np.testing.assert_allclose(update, expected, rtol=2e-3)


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'muon'])
def test_weight_decay_is_of_matrices_and_tables(params, gradients, name):
  plain = _paths(_update(params, gradients, name=name))
  decayed = _paths(_update(params, gradients, name=name, weight_decay=0.5))
  for path, p in _paths(params).items():
    change = np.asarray(decayed[path] - plain[path])
    if path.endswith(('bias', 'scale')):
      assert not change.any(), path
    elif name != 'sgd':
      np.testing.assert_allclose(change, -0.05 * p, rtol=1e-2, atol=1e-5)
    else:
      assert change.any(), path


def test_muon_makes_each_matrix_of_each_layer_orthogonal(params, gradients):
  found = _paths(_update(params, gradients, name='muon'))
  axes = matrix_axes(params)
  matrices = _paths(axes, lambda x: isinstance(x, MuonDimensionNumbers))
  for path in found:
    is_one = path.startswith('layers/') and not path.endswith(('bias', 'scale'))
    assert (path in matrices) == (is_one or 'projection' in path), path
  update_NDX = np.asarray(found['layers/attention/query']).reshape(2, 8, 8)
  for update_DX in update_NDX:
    values = np.linalg.svd(update_DX, compute_uv=False)
    # Five iterations leave them within a factor of two of each other.
    assert values.max() / values.min() < 2.5
  rms = np.sqrt(np.mean(np.square(update_NDX)))
  assert rms == pytest.approx(0.1 * 0.2, rel=0.3)


def test_factors_scale_the_learning_rate(params, gradients):
  table = (('embedding/table_0', 0.5), ('embedding/.*', 0.25))
  plain = _paths(_update(params, gradients))
  scaled = _paths(_update(params, gradients, rate_factors=table))
  for path in plain:
    factor = 1.0
    if path.startswith('embedding'):
      factor = 0.5 if path == 'embedding/table_0' else 0.25
    np.testing.assert_allclose(scaled[path], factor * plain[path], rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_parameters_stay_and_do_not_count(params, gradients, name):
  frozen = ('layers/.*', 'content_bias')
  fields = dict(name=name, frozen=frozen, clip_norm=0.25)
  updates = _paths(_update(params, gradients, **fields))
  trained = {k: v for k, v in _paths(gradients).items() if k not in frozen}
  trained = {k: v for k, v in trained.items() if not k.startswith('layers/')}
  for path, update in updates.items():
    assert np.asarray(update).any() == (path in trained), path
  if name == 'sgd':
    # Clipped as if the others were not there.
    norm = optax.tree.norm(trained)
    path = 'softmax/bias'
    expected = -0.1 * 0.25 / norm * trained[path]
    np.testing.assert_allclose(updates[path], expected, rtol=1e-5)


def test_state_of_frozen_parameters_is_not_kept(params):
  full = make_optimizer(OptimizerConfig(), 10).init(params)
  config = OptimizerConfig(frozen=('layers/.*',))
  part = make_optimizer(config, 10).init(params)
  saved = 2 * sum(x.size for x in jax.tree.leaves(params['layers']))
  sizes = [sum(x.size for x in jax.tree.leaves(s)) for s in (full, part)]
  assert sizes[0] - sizes[1] == saved


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(frozen=('layer/.*',)), "frozen: 'layer/.*' matches no parameter"),
    (dict(frozen=('(',)), 'is no regular expression'),
    (dict(rate_factors=(('x', 2.0),)), "rate_factors: 'x' matches no"),
  ],
)
def test_a_pattern_that_matches_nothing(params, fields, message):
  optimizer = make_optimizer(OptimizerConfig(**fields), 10)
  with pytest.raises(InputError, match=message):
    jax.eval_shape(optimizer.init, params)


def test_from_the_command_line():
  values = apply_overrides(
    default_config(),
    [
      "--config.optimizer.rate_factors=(('embedding/.*', 0.5), ('x', 2))",
      "--config.optimizer.frozen=('layers/.*',)",
      '--config.optimizer.clip_norm=none',
    ],
  )
  optimizer = from_config_dict(values).optimizer
  assert optimizer.rate_factors == (('embedding/.*', 0.5), ('x', 2.0))
  assert optimizer.frozen == ('layers/.*',)
  assert optimizer.clip_norm is None
  assert hash(optimizer)
  again = dataclasses.replace(optimizer, rate_factors=[('a', 1.0)])
  assert hash(again)
  values.optimizer.rate_factors = (('a', 1.0, 2),)
  with pytest.raises(InputError, match='must hold 2 values'):
    from_config_dict(values)
