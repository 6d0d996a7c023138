"""Updates on meshes of every kind equal those on one device.

On GPUs: pytest --noconftest -s tests/training/test_meshes.py
"""

import dataclasses
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
# The same text and masks, and updates of next to nothing.
STILL = dataclasses.replace(
  CONFIG, optimizer=OptimizerConfig(learning_rate=1e-9, average='ema')
)
N = jax.device_count()
# On Hopper all of its kernels take part, unless heads are divided.
WIDE = dataclasses.replace(
  CONFIG,
  model=ModelConfig(
    vocab_size=4096,
    n_layers=2,
    n_heads=4,
    d_model=1024,
    d_head=64,
    d_ff=2048,
    memory_length=128,
    attention_dropout=0.1,
    dtype='bfloat16',
  ),
  train=TrainConfig(steps=50, batch_size=34 * N, segment_length=128),
)
BY_AXIS = [(N, 1, 1), (1, N, 1), (1, 1, N)]
MESHES = [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)] if N == 8 else BY_AXIS
several_devices = pytest.mark.skipif(N == 1, reason='needs several devices')
several_gpus = pytest.mark.skipif(
  N == 1 or jax.default_backend() != 'gpu', reason='needs several GPUs'
)


@functools.cache
def _train(
  config: Config, sizes: tuple[int, int, int] | None
) -> tuple[list[float], str, dict]:
  """Losses of all updates, the compiled text, and the final parameters."""
  if sizes is None:
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  else:
    mesh = mesh_lib.make_mesh(MeshConfig(*sizes))
  train = config.train
  optimizer = make_optimizer(config.optimizer, train.steps)
  init = functools.partial(init_state, config, optimizer)
  abstract = abstract_state(init, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  state = jax.jit(init, out_shardings=shardings)()
  rows, length = train.batch_size, train.segment_length
  n_tokens = max(3000, 3 * rows * length)
  tokens = np.random.default_rng(0).integers(0, 96, n_tokens).astype(np.uint16)
  stream = TrainStream(
    tokens, None, batch_size=rows, segment_length=length, segments_per_step=1
  )
  batches = [place(mesh, stream[i], rows) for i in range(train.steps)]
  # GPUs would round operands of float32 to fewer bits.
  exact = 'highest' if config.model.dtype == 'float32' else None
  with jax.default_matmul_precision(exact):
    step = compile_step(config, optimizer, mesh, state, batches[0])
  losses = []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss_sum']))
  wanted = param_shardings(mesh, state.params)
  for tree in (state.params, state.average['params']):
    assert jax.tree.map(lambda leaf: leaf.sharding, tree) == wanted
  return losses, step.as_text(), state.params


@pytest.mark.slow
@several_devices
@pytest.mark.parametrize('sizes', MESHES)
def test_ten_updates_are_those_of_one_device(sizes):
  losses, _, _ = _train(CONFIG, sizes)
  np.testing.assert_allclose(losses, _train(CONFIG, None)[0], rtol=1e-5)
  assert np.less(losses, _train(STILL, None)[0])[1:].all()


@pytest.mark.slow
@several_gpus
@pytest.mark.parametrize('sizes', BY_AXIS)
def test_updates_in_bfloat16_are_nearly_those_of_one_gpu(sizes):
  losses, alone = (np.array(_train(WIDE, s)[0]) for s in (sizes, None))
  largest = np.max(np.abs(losses - alone) / alone)
  print(f'\nmesh {sizes}: largest relative difference {largest:.1e}')
  assert largest < 2e-2
  assert losses[-1] < losses[0]


@pytest.mark.slow
@several_devices
def test_without_fsdp_no_parameter_is_gathered():
  # Rows alone divide: every device has all parameters already.
  assert 'all-gather' not in _train(CONFIG, (N, 1, 1))[1]
  # Heads, inner width and vocabulary divide: none is put together.
  _, text, params = _train(CONFIG, (1, 1, N))
  results = re.findall(r'= (.*) all-gather(?:-start)?\(', text)
  of_layers = {leaf.shape[1:] for leaf in jax.tree.leaves(params['layers'])}
  matrices = {shape for shape in of_layers if len(shape) > 1}
  for shape in re.findall(r'\[([\d,]+)\]', ' '.join(results)):
    assert tuple(map(int, shape.split(','))) not in matrices, shape
