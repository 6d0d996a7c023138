"""Training on the last half of each segment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import txl_jax
from txl_jax.config import Config, TrainConfig
from txl_jax.data.streams import TrainStream
from txl_jax.training.meter import Meter
from txl_jax.training.state import init_state
from txl_jax.training.step import make_train_step, scored

MODEL = txl_jax.ModelConfig(
  vocab_size=17,
  n_layers=1,
  n_heads=2,
  d_model=8,
  d_head=4,
  d_ff=8,
  memory_length=4,
  dropout=0.0,
  init_std=0.4,
)


@pytest.mark.parametrize(('length', 'first'), [(8, 4), (5, 2), (1, 0)])
def test_which_tokens_are_scored(length, first):
  row = np.arange(length)
  assert scored(row, 'half').tolist() == list(range(first, length))
  assert scored(row, 'full').tolist() == row.tolist()


def test_gradient_loss_and_count_are_those_of_the_last_halves():
  # An optimizer that does nothing and keeps the gradient.
  capture = optax.GradientTransformation(
    lambda params: params,
    lambda gradient, state, params: (
      jax.tree.map(jnp.zeros_like, gradient),
      gradient,
    ),
  )
  config = Config(MODEL, train=TrainConfig(batch_size=3))
  state = jax.jit(functools.partial(init_state, config, capture))()
  tokens = np.random.default_rng(0).integers(0, 16, 500)
  stream = TrainStream(
    tokens, 16, batch_size=3, segment_length=6, segments_per_step=2
  )
  step = jax.jit(make_train_step(MODEL, capture, loss='half'))
  after, metrics = step(state, stream[0])

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params):
    nll_SBT, memory = txl_jax.score_segments(
      MODEL, params, *stream[0][:2], state.memory
    )
    return nll_SBT[:, :, 3:].mean(), memory

  (expected, memory), gradient = loss(state.params)
  assert metrics['count'] == 2 * 3 * 3
  found = metrics['loss_sum'] / metrics['count']
  assert float(found) == pytest.approx(float(expected), rel=1e-6)
  for ours, theirs in zip(
    jax.tree.leaves((after.opt_state, after.memory)),
    jax.tree.leaves((gradient, memory)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_line_divides_by_what_is_scored_and_times_what_is_read():
  meter = Meter()
  metrics = {'loss_sum': np.float32(30), 'gradient_norm': np.float32(1)}
  metrics |= {'gradient_norms': {}, 'skipped': np.bool_(False)}
  counts = {'tokens': 10, 'characters': 10, 'read': 2_000_000}
  meter.add(1, metrics, [counts])
  line = meter.line()
  assert line['loss'] == 3.0
  assert line['tokens_per_second'] > 10_000
