"""The adaptive softmax's losses against its full log-probabilities."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import txl_jax
from txl_jax.model.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from txl_jax.ops import cross_entropy, shards

V, B, T, D = 50, 4, 8, 16
PLAIN = txl_jax.ModelConfig(
  vocab_size=V, n_layers=1, n_heads=1, d_model=D, d_head=4, d_ff=8, dropout=0.0
)
replace = functools.partial(dataclasses.replace, PLAIN)
DIV1 = functools.partial(replace, cutoffs=(10, 21, 40))
DIV4 = functools.partial(DIV1, div_val=4, d_embed=64)
CASES = {
  'plain': PLAIN,
  'div 1': DIV1(),
  'div 4': DIV4(tie_projections=(False, True, True, True)),
  'div 4, untied': DIV4(tie_weights=False),
  'narrow, bfloat16': DIV1(d_embed=8, dtype='bfloat16'),
}
TARGETS = {
  'typical': np.random.default_rng(0).zipf(1.5, (B, T)) % V,
  'all in one tail': np.random.default_rng(1).integers(21, 40, (B, T)),
  'no tail': np.random.default_rng(2).integers(0, 10, (B, T)),
}


@pytest.fixture(autouse=True)
def tiny_tiles(monkeypatch):
  """Tails in chunks of four rows: a tail with all of them takes eight."""
  monkeypatch.setattr(cross_entropy, 'ALIGNMENT', 4)
  monkeypatch.setattr(cross_entropy, 'LOGITS_AT_ONCE', 80)


class Losses(nn.Module):
  """Losses of targets, from an embedding's tables and hidden states."""

  config: txl_jax.ModelConfig

  def setup(self):
    self.embedding = AdaptiveEmbedding(self.config)
    self.softmax = AdaptiveSoftmax(self.config)

  def __call__(self, tokens_BT, targets_BT, hidden_BTD, full=False):
    """As the model computes them, or picked from the full vocabulary."""
    hidden_BTD = hidden_BTD.astype(self.config.dtype)
    hidden_BTD += self.embedding(tokens_BT)
    vectors = self.embedding.vectors()
    if not full:
      return self.softmax(hidden_BTD, targets_BT, vectors)
    logp_BTV = self.softmax.log_probs(hidden_BTD, vectors)
    return -jnp.take_along_axis(logp_BTV, targets_BT[..., None], -1)[..., 0]


def _inputs(config: txl_jax.ModelConfig) -> tuple:
  random = np.random.default_rng(3)
  tokens_BT = random.integers(0, V, (B, T))
  hidden_BTD = random.normal(size=(B, T, D)).astype(np.float32)
  shapes = jax.eval_shape(
    Losses(config).init, jax.random.key(0), tokens_BT, tokens_BT, hidden_BTD
  )
  params = jax.tree.map(
    lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes
  )
  return params, hidden_BTD, tokens_BT, random.normal(size=(B, T))


@functools.cache
def _results(config: txl_jax.ModelConfig, full: bool = False):
  """A function from targets to losses and every gradient."""
  params, hidden_BTD, tokens_BT, cotangent_BT = _inputs(config)

  def run(params, hidden_BTD, targets_BT):
    def losses(params, hidden_BTD):
      return Losses(config).apply(
        params, tokens_BT, targets_BT, hidden_BTD, full
      )

    nll_BT, pull = jax.vjp(losses, params, hidden_BTD)
    return nll_BT, pull(cotangent_BT.astype(nll_BT.dtype))

  return functools.partial(jax.jit(run), params, hidden_BTD)


def _assert_close(found, expected, tolerance: float = 1e-5) -> None:
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    found,
    expected,
  )


@pytest.mark.parametrize('name', CASES)
def test_equals_the_full_log_probabilities(name):
  config = CASES[name]
  static, full = _results(config), _results(config, full=True)
  for targets_BT in TARGETS.values():
    (nll_BT, gradients), (expected, theirs) = (
      static(targets_BT),
      full(targets_BT),
    )
    _assert_close(nll_BT, expected)
    assert nll_BT.dtype == jnp.float32
    # Those of the full one are rounded to bfloat16 and added up in it.
    low = config.dtype == 'bfloat16'
    _assert_close(gradients, theirs, 1e-1 if low else 1e-5)


def test_rows_divided_over_a_mesh_give_the_same():
  config = CASES['div 4']
  expected = _results(config)
  mesh = jax.make_mesh(
    (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )
  axes = dict(rows=('data', 'fsdp'), vocabulary=('tensor',))
  # One group of rows has nothing in the tails, another nothing else.
  targets_BT = np.concatenate([TARGETS['no tail'][:2], TARGETS['typical'][2:]])
  targets_BT[-1] = TARGETS['all in one tail'][-1]
  whole = expected(targets_BT)
  with shards.bind(mesh, **axes):
    _assert_close(_results.__wrapped__(config)(targets_BT), whole)


def test_segments_share_what_is_kept_of_the_weights():
  # One copy of the weights for the backward pass, not one for each segment.
  config = DIV1(vocab_size=4_096, cutoffs=(1_024,))
  params, hidden_BTD, tokens_BT, _ = _inputs(config)

  def temporary(n_segments: int) -> int:
    targets_SBT = np.zeros((n_segments, B, T), np.int32)

    def loss(params):
      def step(_, targets_BT):
        arguments = tokens_BT, targets_BT, hidden_BTD
        return None, Losses(config).apply(params, *arguments)

      return jax.lax.scan(step, None, targets_SBT)[1].sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  table = config.vocab_size * D * 4
  assert temporary(22) - temporary(2) < table
