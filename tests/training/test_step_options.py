"""Updates in chunks and several a call, and updates that are skipped.

In float64, where rounding does not hide a difference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from txl_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from txl_jax.data.streams import Batch, TrainStream
from txl_jax.training.norms import group_norms, total_norm
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.schedules import init_plateau
from txl_jax.training.state import TrainState, init_state
from txl_jax.training.step import (
  forget_broken_rows,
  make_train_step,
  several_steps,
)

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
ADAM = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), 9)


@pytest.fixture(scope='module', autouse=True)
def _in_float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def stream() -> TrainStream:
  """Steps of two segments of eight rows of eight tokens."""
  tokens = np.random.default_rng(0).integers(0, 40, 3000).astype(np.uint16)
  sizes = dict(batch_size=8, segment_length=8, segments_per_step=2)
  return TrainStream(tokens, 39, **sizes)


@pytest.fixture(scope='module')
def start() -> TrainState:
  """A first state, in float64."""
  config = Config(MODEL, train=TrainConfig(batch_size=8))
  state = init_state(config, ADAM)
  params = jax.tree.map(lambda x: x.astype(jnp.float64), state.params)
  return state.replace(params=params, opt_state=ADAM.init(params))


@pytest.fixture(scope='module')
def single(stream, start) -> tuple[list[TrainState], list[dict]]:
  """The states and metrics of four updates."""
  step, states, metrics = jax.jit(make_train_step(MODEL, ADAM)), [start], []
  for i in range(4):
    state, found = step(states[-1], stream[i])
    states.append(state)
    metrics.append(found)
  return states, metrics


def _close(a, b, rtol=1e-9) -> None:
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(x, y, rtol, 1e-11, err_msg=name)


@pytest.mark.parametrize('n', [2, 4])
def test_chunks_of_rows_make_the_same_update(stream, single, n):
  states, metrics = single
  step = jax.jit(make_train_step(MODEL, ADAM, row_chunks=n))
  found, of_chunks = step(states[1], stream[1])
  _close(found, states[2])
  _close(of_chunks, metrics[1])


def test_several_updates_a_call(stream, start, single):
  states, metrics = single
  step = jax.jit(several_steps(make_train_step(MODEL, ADAM), 4))
  batch = Batch(*map(np.concatenate, zip(*(stream[i] for i in range(4)))))
  found, of_call = step(start, batch)
  _close(found, states[-1])
  for i in range(4):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], of_call)
    _close(one, metrics[i])


def test_norms_by_group(single):
  states, metrics = single
  params = states[0].params
  norms = group_norms(params)
  assert {'embedding', 'softmax', 'layers/attention'} < norms.keys()
  assert not any('kernel' in name for name in norms)
  assert total_norm(norms) == pytest.approx(optax.tree.norm(params))
  found = metrics[0]
  assert total_norm(found['gradient_norms']) == found['gradient_norm']


def _broken(batch: Batch) -> Batch:
  """An id that is no token gives a loss that is no number, in row 3."""
  targets_SBT = batch.targets_SBT.copy()
  targets_SBT[0, 3, 2] = 40
  return batch._replace(targets_SBT=targets_SBT)


def test_a_broken_update_is_skipped(stream, single):
  states, _ = single
  step = jax.jit(make_train_step(MODEL, ADAM))
  state, metrics = step(states[1], _broken(stream[1]))
  assert metrics['skipped']
  assert not np.isfinite(metrics['loss_sum'])
  assert int(state.step) == 2
  names = ('params', 'opt_state', 'key')
  _close(
    [getattr(state, n) for n in names], [getattr(states[1], n) for n in names]
  )
  # What was read is remembered: the tokens were good.
  _close(state.memory, states[2].memory)
  _, metrics = step(state, stream[2])
  assert not metrics['skipped']


def test_rows_that_remember_nonsense_forget(stream, single):
  states, _ = single
  tokens_SBT = stream[1].tokens_SBT.copy()
  tokens_SBT[1, 3, 5] = 40
  batch = stream[1]._replace(tokens_SBT=tokens_SBT)
  step = jax.jit(make_train_step(MODEL, ADAM))
  state, metrics = step(states[1], batch)
  assert metrics['skipped']
  expected = states[2].memory.valid_B.at[3].set(0)
  assert state.memory.valid_B.tolist() == expected.tolist()
  assert np.isfinite(state.memory.hidden_NBMD).all()
  state, metrics = step(state, stream[2])
  assert not metrics['skipped']
  _close(forget_broken_rows(state.memory), state.memory)


def test_nothing_in_a_step_depends_on_a_condition(stream, start):
  # The host of several GPUs would wait for it, and launch the next step late.
  step = jax.jit(make_train_step(MODEL, ADAM))
  text = step.lower(start, stream[0]).as_text()
  assert 'stablehlo.case' not in text and 'stablehlo.if' not in text


def test_an_average_is_kept_and_not_of_skipped_updates(stream, start):
  def average(sums: dict, params: dict, step: jax.Array) -> dict:
    return jax.tree.map(lambda s, p: s + (step - 1) * p, sums, params)

  zeros = jax.tree.map(jnp.zeros_like, start.params)
  step = jax.jit(make_train_step(MODEL, ADAM, average=average))
  first, _ = step(start.replace(average=zeros), stream[0])
  second, _ = step(first, stream[1])
  _close(second.average, second.params)
  skipped, _ = step(second, _broken(stream[2]))
  _close(skipped.average, second.average)


def test_a_plateau_scales_the_update(stream, start):
  sgd = optax.sgd(0.1)
  start = start.replace(opt_state=sgd.init(start.params))
  step = jax.jit(make_train_step(MODEL, sgd))
  plain, _ = step(start, stream[0])
  plateau = init_plateau().replace(scale=jnp.float32(0.5))
  scaled, _ = step(start.replace(plateau=plateau), stream[0])
  half = jax.tree.map(lambda a, b: (a + b) / 2, start.params, plain.params)
  _close(scaled.params, half)
