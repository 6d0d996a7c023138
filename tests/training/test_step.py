"""The train step: the same numbers however it is run.

In float64, where rounding does not hide a difference: Adam enlarges it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import txl_jax
from txl_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from txl_jax.data.streams import Batch, TrainStream
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import TrainState, init_state
from txl_jax.training.step import make_train_step

MODEL = ModelConfig(
  vocab_size=40,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=8,
  dropout=0.0,
  dtype='float64',
)
DROPPING = dataclasses.replace(MODEL, dropout=0.3, attention_dropout=0.3)
ADAM = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), 5)
# Leaves the parameters alone and keeps the gradient as its state.
CAPTURE = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda gradients, *_: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)
N_SEGMENTS = 3


@pytest.fixture(scope='module', autouse=True)
def _in_float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def stream() -> TrainStream:
  """Steps of three segments of eight rows of eight tokens."""
  tokens = np.random.default_rng(0).integers(0, 40, 3000).astype(np.uint16)
  return TrainStream(
    tokens,
    39,
    batch_size=8,
    segment_length=8,
    segments_per_step=N_SEGMENTS,
  )


def _start(optimizer: optax.GradientTransformation = ADAM) -> TrainState:
  """A first state whose parameters are not drawn by a compiled program."""
  config = Config(MODEL, train=TrainConfig(batch_size=8))
  shapes = jax.eval_shape(functools.partial(init_state, config, optimizer))
  random = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape)),
    shapes.params,
  )
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    memory=txl_jax.init_memory(MODEL, 8),
    key=jax.random.key(2),
  )


def _run(step, state: TrainState, batches: list) -> tuple[TrainState, list]:
  metrics = []
  for batch in batches:
    state, found = step(state, batch)
    metrics.append(found)
  return state, jax.device_get(metrics)


def _train(stream: TrainStream, n_devices: int) -> tuple[TrainState, list]:
  """Five updates, compiled as the loop does."""
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:n_devices])
  state = _start()
  state_sharding = mesh_lib.state_shardings(mesh, state)
  batch_sharding = mesh_lib.by_rows(mesh, stream[0])
  step = jax.jit(
    make_train_step(MODEL, ADAM),
    in_shardings=(state_sharding, batch_sharding),
    out_shardings=(state_sharding, mesh_lib.replicated(mesh)),
  )
  batches = [jax.device_put(stream[i], batch_sharding) for i in range(5)]
  return _run(step, jax.device_put(state, state_sharding), batches)


@pytest.fixture(scope='module')
def on_eight(stream) -> tuple[TrainState, list]:
  """The final state and the metrics of five updates on eight devices."""
  return _train(stream, 8)


def _assert_close(a, b) -> None:
  a, b = jax.device_get((a, b))
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=name)


def _assert_equal(a, b) -> None:
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_one_device_equals_eight(stream, on_eight):
  state, metrics = on_eight
  assert state.memory.hidden_NBMD.sharding.num_devices == 8
  shard = state.memory.hidden_NBMD.addressable_shards[0].data
  assert shard.shape == (2, 1, 8, 16)
  alone, alone_metrics = _train(stream, 1)
  assert alone.memory.hidden_NBMD.sharding.num_devices == 1
  _assert_close(alone_metrics, metrics)
  _assert_close(alone.params, state.params)
  _assert_close(alone.memory, state.memory)
  assert int(alone.step) == int(state.step) == 5


def _split_rows(tree):
  """Rows are axis 1, or 0 of a vector; the eight devices go first."""
  return jax.tree.map(
    lambda leaf: np.stack(np.split(leaf, 8, min(leaf.ndim - 1, 1))), tree
  )


@pytest.mark.slow
def test_pmap_equals_jit(stream, on_eight):
  state, metrics = on_eight
  total = functools.partial(jax.lax.psum, axis_name='devices')
  step = functools.partial(make_train_step(MODEL, ADAM), reduce=total)
  mapped, keys = (
    jax.pmap(step, axis_name='devices'),
    jnp.stack([_start().key] * 8),
  )

  def from_host(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
    # Inputs always come from the host, so that one program serves them all.
    state, metrics = mapped(state.replace(key=keys), _split_rows(batch))
    return jax.device_get(state.replace(key=None)), metrics

  start = jax.device_get(_start().replace(key=None))
  copied = jax.tree.map(lambda leaf: np.stack([leaf] * 8), start)
  spread = copied.replace(memory=_split_rows(start.memory))
  final, spread_metrics = _run(from_host, spread, [stream[i] for i in range(5)])
  for i in range(8):
    device = functools.partial(jax.tree.map, lambda leaf, i=i: leaf[i])
    _assert_close(device(final.params), state.params)
    _assert_close(device(spread_metrics), metrics)
  hidden_NBMD = np.concatenate(final.memory.hidden_NBMD, axis=1)
  _assert_close(hidden_NBMD, state.memory.hidden_NBMD)
  _assert_close(np.concatenate(final.memory.valid_B), state.memory.valid_B)


@pytest.fixture(scope='module')
def capture():
  """A compiled step that keeps its gradient, and its first state."""
  return jax.jit(make_train_step(MODEL, CAPTURE)), _start(CAPTURE)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def _segment_loss(params, memory, tokens_BT, targets_BT, starts_BT):
  nll_BT, memory = txl_jax.score(
    MODEL, params, tokens_BT, targets_BT, memory, starts_BT=starts_BT
  )
  return nll_BT.mean(), memory


def test_the_gradient_is_the_mean_over_the_segments(stream, capture):
  step, start = capture
  state, metrics = step(start, stream[0])
  _assert_equal(state.params, start.params)
  memory, losses, gradients = start.memory, [], []
  for segment in zip(*stream[0]):
    (loss, memory), gradient = _segment_loss(start.params, memory, *segment)
    losses.append(loss)
    gradients.append(gradient)
  mean = jax.tree.map(lambda *parts: sum(parts) / N_SEGMENTS, *gradients)
  _assert_close(state.opt_state, mean)
  _assert_close(state.memory, memory)
  loss = metrics['loss_sum'] / metrics['count']
  _assert_close(loss, sum(losses) / N_SEGMENTS)
  assert metrics['count'] == N_SEGMENTS * 8 * 8
  _assert_close(metrics['gradient_norm'], optax.tree.norm(mean))
  # The segments differ, so that the mean is no segment's own.
  first, second, *_ = (g['layers']['attention']['key'] for g in gradients)
  assert np.abs(first - second).max() > 1e-5


def test_memory_reaches_into_the_gradient(stream, capture):
  """Threaded memory matters: from empty memory the gradient is another."""
  step, start = capture
  state, _ = step(start, stream[0])
  again, _ = step(start.replace(memory=state.memory), stream[0])
  fresh = state.opt_state['layers']['attention']['key']
  warm = again.opt_state['layers']['attention']['key']
  assert np.abs(fresh - warm).max() > 1e-5


def _adam_mean(opt_state) -> dict:
  def is_adam(part):
    return isinstance(part, optax.ScaleByAdamState)

  parts = jax.tree.leaves(opt_state, is_leaf=is_adam)
  (adam,) = filter(is_adam, parts)
  return adam.mu


@pytest.mark.parametrize('clip_norm', [0.01, 1e3])
def test_adam_sees_the_clipped_gradient(stream, capture, clip_norm):
  step, start = capture
  gradient = step(start, stream[0])[0].opt_state
  norm = float(optax.tree.norm(gradient))
  assert 0.01 < norm < 1e3
  optimizer = make_optimizer(OptimizerConfig(clip_norm=clip_norm, b1=0.5), 5)
  opt_state = optimizer.init(start.params)
  _, opt_state = jax.jit(optimizer.update)(gradient, opt_state)
  share = min(1, clip_norm / norm)
  expected = jax.tree.map(lambda g: 0.5 * share * g, gradient)
  _assert_close(_adam_mean(opt_state), expected)


def test_the_reported_norm_is_that_before_clipping(stream, capture, on_eight):
  step, start = capture
  norm = float(optax.tree.norm(step(start, stream[0])[0].opt_state))
  assert norm > OptimizerConfig().clip_norm
  _, metrics = on_eight
  assert metrics[0]['gradient_norm'] == pytest.approx(norm, rel=1e-5)


def test_without_dropout_the_step_number_does_not_matter(stream, capture):
  step, start = capture
  later = start.replace(step=jnp.int32(7), key=jax.random.key(5))
  _assert_equal(step(start, stream[0])[1], step(later, stream[0])[1])


@pytest.fixture(scope='module')
def dropping():
  """A compiled step with dropout, and its first state."""
  return jax.jit(make_train_step(DROPPING, ADAM)), _start()


@pytest.mark.slow
def test_recomputing_layers_changes_nothing(stream, dropping):
  plain, start = dropping
  model = dataclasses.replace(DROPPING, remat=True)
  remat = jax.jit(make_train_step(model, ADAM))
  expected, expected_metrics = plain(start, stream[0])
  found, metrics = remat(start, stream[0])
  _assert_close(metrics, expected_metrics)
  # The moments after the first update are the gradient and its square.
  _assert_close(found.replace(key=None), expected.replace(key=None))


def test_the_step_is_deterministic(stream, dropping):
  step, state = dropping
  batches: list[Batch] = [stream[i] for i in range(3)]
  first, first_metrics = _run(step, state, batches)
  second, second_metrics = _run(step, state, batches)
  _assert_equal(first, second)
  _assert_equal(first_metrics, second_metrics)


def test_dropout_follows_from_key_and_step(stream, dropping):
  step, state = dropping

  def loss(**changes) -> float:
    return float(step(state.replace(**changes), stream[0])[1]['loss_sum'])

  losses = [loss(step=jnp.int32(i)) for i in range(4)]
  assert len(set(losses)) == 4
  assert loss(key=jax.random.key(99)) != losses[0]
  assert loss(step=jnp.int32(2)) == losses[2]
  after, _ = step(state, stream[0])
  _assert_equal(after.key, state.key)
