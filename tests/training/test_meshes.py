"""Ten updates on meshes of every kind equal those on one device."""

import functools
import re

import jax
import numpy as np
import pytest

from txl_jax.config import (
  Config,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  TrainConfig,
)
from txl_jax.data.streams import TrainStream
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import place
from txl_jax.parallel.partition import param_shardings
from txl_jax.training.checkpoint import abstract_state
from txl_jax.training.compile import compile_step
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state

CONFIG = Config(
  ModelConfig(
    vocab_size=96,
    n_layers=2,
    n_heads=8,
    d_model=32,
    d_head=4,
    d_ff=64,
    memory_length=8,
    dropout=0.2,
    attention_dropout=0.2,
    cutoffs=(40,),
  ),
  optimizer=OptimizerConfig(learning_rate=1e-3, average='ema'),
  train=TrainConfig(steps=10, batch_size=8, segment_length=8),
)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)]


@functools.cache
def _train(sizes: tuple[int, int, int] | None) -> tuple[list[float], str, dict]:
  """Losses of ten updates, the compiled text, and the final parameters."""
  if sizes is None:
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  else:
    mesh = mesh_lib.make_mesh(MeshConfig(*sizes))
  optimizer = make_optimizer(CONFIG.optimizer, CONFIG.train.steps)
  init = functools.partial(init_state, CONFIG, optimizer)
  abstract = abstract_state(init, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  state = jax.jit(init, out_shardings=shardings)()
  tokens = np.random.default_rng(0).integers(0, 96, 3000).astype(np.uint16)
  sizes = dict(batch_size=8, segment_length=8, segments_per_step=1)
  stream = TrainStream(tokens, None, **sizes)
  batches = [place(mesh, stream[i], 8) for i in range(10)]
  step, losses = compile_step(CONFIG, optimizer, mesh, state, batches[0]), []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss_sum']))
  wanted = param_shardings(mesh, state.params)
  for tree in (state.params, state.average['params']):
    assert jax.tree.map(lambda leaf: leaf.sharding, tree) == wanted
  return losses, step.as_text(), state.params


@pytest.mark.slow
@pytest.mark.parametrize('sizes', MESHES)
def test_ten_updates_are_those_of_one_device(sizes):
  losses, _, _ = _train(sizes)
  np.testing.assert_allclose(losses, _train(None)[0], rtol=1e-5)
  assert losses[-1] < losses[0]


@pytest.mark.slow
def test_without_fsdp_no_parameter_is_gathered():
  # Rows alone divide: every device has all parameters already.
  assert 'all-gather' not in _train((8, 1, 1))[1]
  # Heads, inner width and vocabulary divide: none is put together.
  _, text, params = _train((1, 1, 8))
  gathered = re.findall(r'= \w+\[([\d,]+)\]\S* all-gather\(', text)
  of_layers = {leaf.shape[1:] for leaf in jax.tree.leaves(params['layers'])}
  matrices = {shape for shape in of_layers if len(shape) > 1}
  for shape in gathered:
    assert tuple(map(int, shape.split(','))) not in matrices, shape
