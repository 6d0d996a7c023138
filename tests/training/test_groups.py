"""Frozen parameters, rates of groups, and the optimizer's state."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from txl_jax.config import ModelConfig, OptimizerConfig
from txl_jax.errors import InputError
from txl_jax.model.functional import init_params
from txl_jax.training import groups
from txl_jax.training.optimizer import make_optimizer

NAMES = ['adam', 'adamw', 'lamb', 'adafactor', 'sgd', 'muon']
STEPS = 100
MODEL = ModelConfig(
  vocab_size=7, n_layers=2, n_heads=2, d_model=4, d_head=3, d_ff=5
)
SHAPES = {
  'layers': {
    'attention': {'query': (2, 4, 2, 3), 'value': (2, 4, 2, 3)},
    'attention_norm': {'scale': (2, 4)},
  },
  'embedding': {'table_0': (7, 4)},
  'softmax': {'bias': (7,)},
}
FROZEN = ('embedding/.*', 'layers/attention/(query|key)')


def _make(name: str = 'adam', **fields) -> optax.GradientTransformation:
  return make_optimizer(OptimizerConfig(name, **fields), STEPS)


def _random(seed: int) -> dict:
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.array(rng.normal(size=shape), jnp.float32),
    SHAPES,
    is_leaf=lambda leaf: isinstance(leaf, tuple),
  )


@pytest.fixture(scope='module')
def params() -> dict:
  return _random(0)


@pytest.fixture(scope='module')
def gradient() -> dict:
  return _random(1)


def _update(optimizer, gradient: dict, params: dict) -> dict[str, np.ndarray]:
  """The first update, by path."""

  @jax.jit
  def first(gradient: dict, params: dict) -> dict:
    return optimizer.update(gradient, optimizer.init(params), params)[0]

  updates = first(gradient, params)
  return dict(
    zip(groups.paths(updates), map(np.array, jax.tree.leaves(updates)))
  )


def _is_frozen(path: str) -> bool:
  parts = path.split('/')
  return parts[0] == 'embedding' or parts[-1] in ('query', 'key')


@pytest.mark.parametrize('name', NAMES)
def test_rates_of_groups(name, params, gradient):
  """The first pattern that matches counts."""
  factors = (('layers/.*norm/.*', 0.5), ('layers/.*', 3.0), ('.*bias', 0.25))
  fields = dict(weight_decay=0.1, learning_rate=0.1)
  plain = _update(_make(name, **fields), gradient, params)
  found = _update(_make(name, **fields, rate_factors=factors), gradient, params)
  for path, update in found.items():
    if path.startswith('layers/'):
      expected = 0.5 if 'norm' in path else 3.0
    else:
      expected = 0.25 if path.endswith('bias') else 1.0
    np.testing.assert_allclose(update, plain[path] * expected, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_parameters_stay_and_the_others_do_not_notice(
  name, params, gradient
):
  fields = dict(weight_decay=0.1, clip_norm=0.5)
  optimizer = _make(name, **fields, frozen=FROZEN)
  found = _update(optimizer, gradient, params)
  # Were these gradients counted in the norm, clipping would take all the rest.
  huge = groups.map_paths(lambda path: 1e9 if _is_frozen(path) else 1.0, params)
  huge = jax.tree.map(lambda g, by: g * by, gradient, huge)
  again = _update(optimizer, huge, params)
  none = jax.tree.map(
    lambda g, frozen: g * (not frozen),
    *(gradient, groups.map_paths(_is_frozen, params)),
  )
  expected = _update(_make(name, **fields), none, params)
  assert any(map(_is_frozen, found))
  for path, update in found.items():
    np.testing.assert_array_equal(update, again[path])
    if _is_frozen(path):
      assert not update.any()
    else:
      assert update.any()
      np.testing.assert_allclose(update, expected[path], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('frozen', [(), FROZEN])
@pytest.mark.parametrize('name', NAMES)
def test_the_state_is_made_of_arrays_that_bear_their_parameters_path(
  name, frozen
):
  init = functools.partial(init_params, MODEL)
  params = jax.eval_shape(init, jax.random.key(0))
  factors = (('layers/.*', 2.0),)
  fields = dict(weight_decay=0.1, frozen=frozen, rate_factors=factors)
  state = jax.eval_shape(_make(name, **fields).init, params)
  shapes = {
    path: leaf.shape
    for path, leaf in zip(groups.paths(params), jax.tree.leaves(params))
  }
  bearing = set()
  for path, leaf in zip(groups.paths(state), jax.tree.leaves(state)):
    assert isinstance(leaf, jax.ShapeDtypeStruct)
    assert leaf.size
    owner = [known for known in shapes if path.endswith(f'/{known}')]
    bearing |= {*owner}
    if leaf.ndim > 1:
      assert shapes[max(owner, key=len)] == leaf.shape
  trained = {p for p in shapes if not (frozen and _is_frozen(p))}
  assert bearing - {'position_bias', 'content_bias'} <= trained
  assert trained <= bearing


def test_no_gradient_is_computed_for_frozen_parameters(params):
  config = OptimizerConfig(frozen=FROZEN)

  def loss(params: dict) -> jax.Array:
    leaves = jax.tree.leaves(groups.stop_frozen(config, params))
    return sum((leaf**2).sum() for leaf in leaves)

  gradient = jax.jit(jax.grad(loss))(params)
  for path, leaf in zip(groups.paths(gradient), jax.tree.leaves(gradient)):
    assert bool(leaf.any()) != _is_frozen(path), path
  assert groups.stop_frozen(OptimizerConfig(), params) is params


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'frozen': ('embedding/.*', 'embeding/table_0')},
      "frozen: the pattern 'embeding/table_0' matches the whole path of no "
      "parameter; the nearest one is 'embedding/table_0'",
    ),
    # It must match the whole path.
    ({'frozen': ('embedding',)}, "frozen: the pattern 'embedding' matches"),
    (
      {'rate_factors': (('.*bias', 2.0), ('.*Bias', 2.0))},
      "rate_factors: the pattern '.*Bias' matches",
    ),
    (
      {'weight_decay': 0.1, 'undecayed': ('gamma',)},
      "undecayed: the pattern 'gamma' matches",
    ),
    ({'frozen': ('.*',)}, 'frozen must leave a parameter'),
  ],
)
def test_a_pattern_that_matches_nothing_is_refused(fields, message, params):
  optimizer = _make(**fields)
  for init in (
    optimizer.init,
    functools.partial(jax.eval_shape, optimizer.init),
  ):
    with pytest.raises(InputError) as caught:
      init(params)
    assert f'config.optimizer.{message}' in str(caught.value)


def _save_and_restore(folder: pathlib.Path, tree: Any) -> Any:
  with ocp.CheckpointManager(folder) as manager:
    manager.save(0, args=ocp.args.StandardSave(tree))
  shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
  with ocp.CheckpointManager(folder) as manager:
    return manager.restore(0, args=ocp.args.StandardRestore(shapes))


@pytest.mark.parametrize('name', ['adafactor', 'muon'])
def test_the_state_survives_a_checkpoint(name, tmp_path, params, gradient):
  """The two whose states are least plain, with parameters left out of them."""
  optimizer = _make(name, weight_decay=0.1, frozen=FROZEN)
  state = optimizer.init(params)
  _, state = jax.jit(optimizer.update)(gradient, state, params)
  again = _save_and_restore(tmp_path / 'state', state)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, again, state)
