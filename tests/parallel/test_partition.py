"""The partition table knows every parameter of every kind of model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import txl_jax
from txl_jax.config import (
  Config,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  TrainConfig,
)
from txl_jax.parallel.mesh import make_mesh, state_shardings
from txl_jax.parallel.partition import (
  TABLE,
  P,
  matching_lines,
  param_shardings,
  param_specs,
  path_name,
  unsharded,
)
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state

H, F = 6, 32
# No other axis is as long as these two.
MODEL = ModelConfig(
  vocab_size=40, n_layers=2, n_heads=H, d_model=16, d_head=4, d_ff=F
)
ADAPTIVE = dict(cutoffs=(8, 20), div_val=2, vocab_size=44)
KINDS = {
  'plain': {},
  'untied biases': dict(untie_biases=True),
  'pre-norm': dict(pre_norm=True),
  'narrow embedding': dict(d_embed=8),
  'clusters of one width': dict(cutoffs=(8, 20), d_embed=8),
  'adaptive': ADAPTIVE,
  'adaptive, tied projections': dict(
    ADAPTIVE, tie_projections=(False, True, True)
  ),
  'adaptive, untied': dict(ADAPTIVE, tie_weights=False),
  'untied': dict(tie_weights=False),
  'shaw': dict(position_encoding='shaw', n_positions=12),
  'sinusoid': dict(position_encoding='sinusoid', n_positions=12),
  'learned': dict(position_encoding='learned', n_positions=12),
}


def _shapes(kind: str) -> dict:
  config = dataclasses.replace(MODEL, **KINDS[kind])
  key = jax.random.key(0)
  return jax.eval_shape(lambda: txl_jax.init_params(config, key))


def _paths(kind: str) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(_shapes(kind))
  return {path_name(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize('kind', KINDS)
def test_each_parameter_matches_one_line(kind):
  for path, shape in _paths(kind).items():
    (spec,) = matching_lines(path)
    assert len(spec) <= len(shape), path


def test_each_line_has_a_parameter():
  paths = {path for kind in KINDS for path in _paths(kind)}
  for line in TABLE:
    assert any(line[1] in matching_lines(path) for path in paths), line


def _divided(kind: str) -> dict[str, list[tuple[int, str | None]]]:
  """For each parameter its sizes, and what divides them."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  specs = param_specs(mesh, _shapes(kind))
  return {
    path_name(path): list(
      itertools.zip_longest(_paths(kind)[path_name(path)], spec)
    )
    for path, spec in jax.tree_util.tree_leaves_with_path(specs)
  }


@pytest.mark.parametrize('kind', KINDS)
def test_heads_width_and_words_are_divided_by_tensor(kind):
  for path, axes in _divided(kind).items():
    for size, name in axes:
      if path.startswith('layers') or size == H:
        assert (name == 'tensor') == (size in (H, F)), path
    if path == 'softmax/bias' or '/table_' in path:
      assert axes[0][1] == 'tensor', path


@pytest.mark.parametrize('kind', KINDS)
def test_every_matrix_is_divided_by_fsdp(kind):
  for path, axes in _divided(kind).items():
    matrix = len(axes) > (2 if path.startswith('layers') else 1)
    names = [name for _, name in axes]
    assert ('fsdp' in names) == (matrix and 'bias' not in path), path
    assert len(names) == len(set(names) - {None}) + names.count(None)


def test_an_axis_that_does_not_divide_stays_whole_and_is_named():
  mesh = make_mesh(MeshConfig(fsdp=1, tensor=4))
  config = dataclasses.replace(MODEL, vocab_size=43)
  shapes = jax.eval_shape(
    lambda: txl_jax.init_params(config, jax.random.key(0))
  )
  specs = param_specs(mesh, shapes)
  assert specs['embedding']['table_0'] == P(None, 'fsdp')
  assert specs['layers']['attention']['query'] == P(None, 'fsdp', None)
  assert specs['layers']['feed_forward']['inner_bias'] == P(None, 'tensor')
  heads, words = sorted(unsharded(mesh, shapes), reverse=True)
  assert 'config.mesh.tensor 4 does not divide 6' in heads
  assert 'layers/attention/output' in heads and 'content_bias' in heads
  assert words == (
    'config.mesh.tensor 4 does not divide 43, so this axis stays whole in '
    'embedding/table_0, softmax/bias.'
  )
  assert unsharded(make_mesh(), shapes) == []


def test_an_unknown_parameter_is_refused():
  params = {'layers': {'novelty': jnp.zeros(3)}}
  with pytest.raises(ValueError, match='layers/novelty matches 0 lines'):
    param_specs(make_mesh(), params)


@pytest.mark.parametrize('name', ['adam', 'lamb', 'sgd'])
def test_the_optimizer_state_lies_where_its_parameters_lie(name):
  config = Config(MODEL, train=TrainConfig(batch_size=8))
  optimizer = make_optimizer(OptimizerConfig(name), 5)
  optimizer = optax.chain(optimizer, optax.ema(0.9))
  state = jax.eval_shape(lambda: init_state(config, optimizer))
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  found = state_shardings(mesh, state)
  assert found.params == param_shardings(mesh, state.params)
  moments = [
    sharding
    for path, sharding in jax.tree_util.tree_leaves_with_path(found.opt_state)
    if path_name(path).endswith('layers/attention/query')
  ]
  assert len(moments) == {'adam': 3, 'lamb': 3, 'sgd': 2}[name]
  assert all(m.spec == P(None, 'fsdp', 'tensor') for m in moments)
  assert found.memory.hidden_NBMD.spec == P(None, ('data', 'fsdp'))
  assert found.memory.valid_B.spec == P(('data', 'fsdp'))
  assert found.key.spec == found.step.spec == P()
