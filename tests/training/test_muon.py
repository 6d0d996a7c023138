"""Muon takes the matrices, layer by layer, and leaves the rest to Adam."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import ModelConfig, OptimizerConfig
from txl_jax.model.functional import init_params
from txl_jax.training import groups
from txl_jax.training.muon import matrix_axes
from txl_jax.training.optimizer import make_optimizer

RATE, STEPS = 0.01, 1000
SIZES = dict(vocab_size=40, n_layers=2, n_heads=2, d_model=8, d_head=3, d_ff=10)
CLUSTERS = dict(cutoffs=(10, 20), div_val=2, tie_weights=False)
FIELDS = {
  'plain': {},
  'clusters': {**CLUSTERS, 'untie_biases': True, 'pre_norm': True},
  'shaw': {'position_encoding': 'shaw', 'n_positions': 4},
  'learned': {'position_encoding': 'learned', 'n_positions': 4},
}
ATTENTION = {f'layers/attention/{name}' for name in 'query key value'.split()}
ALWAYS = ATTENTION | {
  'layers/attention/output',
  'layers/feed_forward/inner_kernel',
  'layers/feed_forward/outer_kernel',
}
PROJECTIONS = {
  f'{part}/projection_{i}' for part in ('embedding', 'softmax') for i in '012'
}
MORE = {
  'plain': {'layers/attention/relative'},
  'clusters': {'layers/attention/relative'} | PROJECTIONS,
  'shaw': set(),
  'learned': set(),
}
# How the matrices of a parameter lie in it.
AS_MATRICES = {
  'layers/attention/query': (2, 8, 6),
  'layers/attention/key': (2, 8, 6),
  'layers/attention/value': (2, 8, 6),
  'layers/attention/relative': (2, 8, 6),
  'layers/attention/output': (2, 6, 8),
  'layers/feed_forward/inner_kernel': (2, 8, 10),
  'layers/feed_forward/outer_kernel': (2, 10, 8),
  'embedding/projection_1': (1, 4, 8),
  'softmax/projection_2': (1, 2, 8),
}


def _random(kind: str, seed: int) -> dict:
  init = functools.partial(init_params, ModelConfig(**SIZES, **FIELDS[kind]))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.array(rng.normal(size=leaf.shape), jnp.float32),
    jax.eval_shape(init, jax.random.key(0)),
  )


def _by_path(tree: dict) -> dict[str, np.ndarray]:
  return dict(zip(groups.paths(tree), map(np.array, jax.tree.leaves(tree))))


@pytest.mark.parametrize('kind', FIELDS)
def test_the_matrices_are_these(kind):
  tree = _random(kind, 0)
  assert {*_paths_of_axes(tree)} == ALWAYS | MORE[kind]


def _paths_of_axes(tree: dict) -> list[str]:
  axes = jax.tree.leaves(
    matrix_axes(tree), is_leaf=lambda x: x is None or isinstance(x, tuple)
  )
  return [path for path, one in zip(groups.paths(tree), axes) if one]


@pytest.fixture(scope='module')
def walk() -> tuple[list[dict], list[dict], list[dict]]:
  """Two gradients, the updates of Muon for them, and those of Adam."""
  params = _random('clusters', 0)
  gradients = [_random('clusters', seed) for seed in (1, 2)]
  found = []
  for name in ('muon', 'adam'):
    fields = dict(learning_rate=RATE, schedule='constant', clip_norm=None)
    optimizer = make_optimizer(OptimizerConfig(name, **fields), STEPS)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    updates = []
    for gradient in gradients:
      one, state = update(gradient, state, params)
      updates.append(_by_path(one))
    found.append(updates)
  return [_by_path(gradient) for gradient in gradients], *found


def test_the_rest_is_left_to_adam(walk):
  _, muon, adam = walk
  matrices = ALWAYS | MORE['clusters']
  for one, other in zip(muon, adam):
    for path, update in one.items():
      same = np.allclose(update, other[path], rtol=1e-5, atol=1e-9)
      assert same == (path not in matrices), path


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
  """Five steps of the Newton-Schulz iteration of Jordan et al. (2024)."""
  a, b, c = 3.4445, -4.7750, 2.0315
  x = matrix / np.linalg.norm(matrix)
  for _ in range(5):
    x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
  return x


@pytest.mark.parametrize('path', AS_MATRICES)
def test_the_updates_are_nearly_orthogonal_layer_by_layer(walk, path):
  gradients, muon, _ = walk
  shape, mean = AS_MATRICES[path], 0.0
  for count, (gradient, updates) in enumerate(zip(gradients, muon), 1):
    gradient, update = gradient[path], updates[path].reshape(shape)
    mean = 0.95 * mean + 0.05 * gradient
    # Nesterov's momentum, both parts without their bias.
    ahead = 0.95 * mean / (1 - 0.95 ** (count + 1))
    momentum = ahead + 0.05 * gradient / (1 - 0.95**count)
    size = RATE * 0.2 * math.sqrt(max(shape[1:]))
    for layer in range(shape[0]):
      expected = _orthogonal(momentum.reshape(shape)[layer])
      np.testing.assert_allclose(
        *(update[layer], -size * expected), rtol=2e-3, atol=2e-3 * size
      )
      values = np.linalg.svd(update[layer] / size, compute_uv=False)
      assert 0.3 < values.min() < values.max() < 1.3
