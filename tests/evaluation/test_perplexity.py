"""Every token is scored exactly once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.config import EvalConfig
from txl_jax.data.streams import eval_batches, sliding_batches
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import evaluate
from txl_jax.parallel.mesh import make_mesh

MODEL = txl_jax.ModelConfig(
  vocab_size=257,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=5,
  init_std=0.3,
)


@functools.cache
def _params() -> dict:
  return txl_jax.init_params(MODEL, jax.random.key(0))


def _text(n: int) -> np.ndarray:
  ids = np.random.default_rng(0).integers(97, 105, n).astype(np.uint16)
  ids[[0, n // 3, n // 2]] = ByteVocabulary.boundary
  return ids


def _evaluate(tokens: np.ndarray, n_devices: int = 1, **options):
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  config = EvalConfig(**options)
  return evaluate(MODEL, _params(), tokens, ByteVocabulary(), config, mesh)


@pytest.mark.parametrize('n', [2, 9, 64, 65, 100])
@pytest.mark.parametrize('rows', [1, 3, 8])
@pytest.mark.parametrize('length', [1, 7, 16])
def test_each_target_counts_once_in_order(n, rows, length):
  tokens = np.arange(n, dtype=np.uint16)
  inputs, targets = [], []
  for batch, target_SBT in eval_batches(
    tokens,
    boundary=0,
    batch_size=rows,
    segment_length=length,
    segments=3,
  ):
    assert batch.tokens_SBT.shape == (3, rows, length)
    counts_BST = (target_SBT >= 0).swapaxes(0, 1)
    for row in range(rows):
      counts = counts_BST[row]
      inputs += [(row, t) for t in batch.tokens_SBT[:, row][counts]]
      targets += [(row, t) for t in batch.targets_SBT[:, row][counts]]
  assert [t for _, t in sorted(inputs, key=lambda x: x[0])] == list(
    range(n - 1)
  )
  assert [t for _, t in sorted(targets, key=lambda x: x[0])] == list(
    range(1, n)
  )


def test_one_row_equals_one_pass():
  tokens = _text(90)
  result = _evaluate(tokens, batch_size=1, segment_length=16, memory_length=100)
  wide = dataclasses.replace(MODEL, memory_length=100)
  starts_BT = jnp.asarray(tokens[None, :-1] == ByteVocabulary.boundary)
  nll_BT, _ = txl_jax.score(
    wide,
    _params(),
    tokens[None, :-1].astype(np.int32),
    tokens[None, 1:].astype(np.int32),
    txl_jax.init_memory(wide, 1),
    starts_BT=starts_BT,
  )
  assert result.nll_sum == pytest.approx(float(nll_BT.sum()), rel=1e-5)
  assert result.tokens == 89
  assert result.characters == 87  # two boundaries are predicted


@pytest.mark.parametrize(
  ('n', 'rows', 'length', 'memory'),
  [(2, 1, 4, 0), (50, 3, 4, 0), (97, 8, 5, 3), (33, 2, 40, 8)],
)
def test_a_unigram_model_gets_the_sum_over_its_targets(n, rows, length, memory):
  # Only the bias of the softmax is not zero: a loss depends on its target only.
  bias_V = np.random.default_rng(0).normal(size=257)
  params = jax.tree.map(jnp.zeros_like, _params())
  params['softmax']['bias'] = jnp.asarray(bias_V, jnp.float32)
  tokens = np.random.default_rng(1).integers(0, 257, n).astype(np.uint16)
  tokens[-1] = ByteVocabulary.boundary
  config = EvalConfig(
    batch_size=rows, segment_length=length, memory_length=memory
  )
  mesh = make_mesh(devices=jax.devices()[:1])
  result = evaluate(MODEL, params, tokens, ByteVocabulary(), config, mesh)
  nll_V = np.log(np.exp(bias_V).sum()) - bias_V
  assert result.nll_sum == pytest.approx(nll_V[tokens[1:]].sum(), rel=1e-6)
  assert result.tokens == n - 1
  assert result.characters == (tokens[1:] != ByteVocabulary.boundary).sum()


@pytest.mark.parametrize('rows', [1, 3])
def test_the_segment_length_makes_no_difference(rows):
  tokens = _text(90)
  sums = [
    _evaluate(
      tokens, batch_size=rows, segment_length=length, memory_length=100
    ).nll_sum
    for length in (7, 90)
  ]
  assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_figures():
  result = _evaluate(
    _text(90), batch_size=1, segment_length=16, memory_length=5
  )
  assert result.nll == result.nll_sum / 89
  assert result.ppl == pytest.approx(np.exp(result.nll))
  assert result.bpc == pytest.approx(result.nll_sum / np.log(2) / 87)
  figures = {'tokens', 'characters', 'nll', 'ppl', 'bpc'}
  assert set(result.to_json()) == figures


def test_eight_devices_equal_one():
  options = {'batch_size': 8, 'segment_length': 4, 'memory_length': 5}
  one, eight = (
    _evaluate(_text(200), 1, **options),
    _evaluate(_text(200), 8, **options),
  )
  assert one.nll_sum == pytest.approx(eight.nll_sum, rel=1e-6)
  assert one.tokens == eight.tokens == 199


def test_rows_that_do_not_divide():
  with pytest.raises(InputError, match='config.eval.batch_size is 12'):
    _evaluate(_text(90), 8, batch_size=12, segment_length=4, memory_length=5)


def test_a_broken_model_is_not_given_a_number():
  broken = jax.tree.map(lambda x: x * np.nan, _params())
  config = EvalConfig(batch_size=1, segment_length=16, memory_length=5)
  mesh = make_mesh(devices=jax.devices()[:1])
  with pytest.raises(InputError, match='nan'):
    evaluate(MODEL, broken, _text(40), ByteVocabulary(), config, mesh)


@pytest.mark.parametrize('n', [2, 8, 9, 10, 64])
@pytest.mark.parametrize(('length', 'stride'), [(8, 1), (8, 3), (8, 8), (1, 1)])
def test_sliding_windows_count_each_target_once(n, length, stride):
  tokens, found = np.arange(n, dtype=np.uint16), {}
  for batch, target_SBT in sliding_batches(
    tokens,
    boundary=0,
    batch_size=3,
    segment_length=length,
    stride=stride,
    segments=2,
  ):
    assert batch.tokens_SBT.shape == (2, 3, length)
    inside = np.argwhere(target_SBT >= 0)
    for s, b, t in inside:
      target = int(batch.targets_SBT[s, b, t])
      assert target not in found and target == target_SBT[s, b, t] + 1
      assert batch.tokens_SBT[s, b, t] == target - 1
      # The window reads the tokens before it, in their order.
      window = batch.tokens_SBT[s, b, : t + 1]
      assert window.tolist() == list(range(target - 1 - t, target))
      found[target] = t
  assert sorted(found) == list(range(1, n))
  for target, context in found.items():
    assert context >= min(target - 1, length - stride)


def test_sliding_evaluation_equals_windows_scored_alone():
  tokens, length = _text(40), 8
  result = _evaluate(
    tokens, batch_size=4, segment_length=length, memory_length=0, stride=1
  )
  model = dataclasses.replace(MODEL, memory_length=0)
  expected = 0.0
  for target in range(1, len(tokens)):
    window = tokens[max(0, target - length) : target + 1].astype(np.int32)
    window = np.pad(window, (length + 1 - len(window), 0))
    starts_BT = jnp.asarray(window[None, :-1] == ByteVocabulary.boundary)
    if target < length:  # padding is not seen
      starts_BT = starts_BT.at[0, length - target].set(True)
    nll_BT, _ = txl_jax.score(
      model,
      _params(),
      window[None, :-1],
      window[None, 1:],
      txl_jax.init_memory(model, 1),
      starts_BT=starts_BT,
    )
    expected += float(nll_BT[0, -1])
  assert result.nll_sum == pytest.approx(expected, rel=1e-5)
  assert result.tokens == 39


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(stride=9, segment_length=8), 'stride must be at most segment_length'),
    (dict(stride=0), 'stride must be at least 1'),
    (dict(stride=1, memory_length=3), 'memory_length must be 0 with a stride'),
    (dict(stride=1, warmup_tokens=3), 'warmup_tokens must be 0 with a stride'),
  ],
)
def test_strides_that_cannot_be(options, message):
  with pytest.raises(InputError, match=message):
    EvalConfig(**{'memory_length': 0, **options})
