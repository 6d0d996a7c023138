"""The loss of a token depends on what it sees, not on how the text is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.config import EvalConfig
from txl_jax.data.streams import eval_batches
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError
from txl_jax.evaluation import perplexity
from txl_jax.evaluation.perplexity import (
  evaluation_model,
  settings_line,
  summed,
  token_losses,
)
from txl_jax.parallel.mesh import make_mesh

MODEL = txl_jax.ModelConfig(
  vocab_size=257,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=8,
  init_std=0.3,
)
SPAN = 9
REACH = MODEL.n_layers * (SPAN - 1)  # tokens before one that can matter to it
N = 200


@pytest.fixture(scope='module')
def params() -> dict:
  return txl_jax.init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope='module')
def tokens() -> np.ndarray:
  ids = np.random.default_rng(0).integers(97, 123, N).astype(np.uint16)
  ids[[0, 70]] = ByteVocabulary.boundary
  return ids


def _losses(params, tokens, n_devices=1, **options) -> np.ndarray:
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  config = EvalConfig(**{'batch_size': 1, **options})
  return token_losses(MODEL, params, tokens, ByteVocabulary(), config, mesh)


@pytest.fixture(scope='module')
def spanned(params, tokens) -> np.ndarray:
  """In one pass over the whole text, from hidden states."""
  return _whole(params, tokens, SPAN)


def _whole(params, tokens, span: int | None) -> np.ndarray:
  model = dataclasses.replace(MODEL, memory_length=N, attention_span=span)
  nll_BT, _ = txl_jax.score(
    model,
    params,
    tokens[None, :-1].astype(np.int32),
    tokens[None, 1:].astype(np.int32),
    txl_jax.init_memory(model, 1),
    starts_BT=jnp.asarray(tokens[None, :-1] == ByteVocabulary.boundary),
  )
  return np.asarray(nll_BT[0])


@pytest.mark.parametrize(
  ('length', 'memory'), [(1, SPAN - 1), (7, 30), (64, SPAN - 1), (128, 30)]
)
def test_the_segment_length_does_not_matter_with_a_span(
  params, tokens, spanned, length, memory
):
  found = _losses(
    *(params, tokens),
    segment_length=length,
    memory_length=memory,
    attention_span=SPAN,
  )
  np.testing.assert_allclose(found, spanned, rtol=1e-5)


def test_the_segment_length_does_not_matter_if_all_is_remembered(
  params, tokens, spanned
):
  expected = _whole(params, tokens, None)
  assert abs(expected - spanned).max() > 1e-3  # the span does matter
  for length in (1, 7, 64, 128):
    found = _losses(params, tokens, segment_length=length, memory_length=N)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_devices_do_not_matter(params, tokens):
  options = dict(batch_size=8, segment_length=4, memory_length=8)
  one = _losses(params, tokens, 1, **options)
  compiled = perplexity._score._cache_size()
  eight = _losses(params, tokens, 8, **options)
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  # What a call leaves lies as it is found: one program for all calls.
  assert perplexity._score._cache_size() == compiled + 1


def test_a_row_that_is_warmed_up_has_the_loss_of_one_row(
  params, tokens, spanned
):
  options = dict(segment_length=7, memory_length=SPAN - 1, attention_span=SPAN)
  cold = _losses(params, tokens, batch_size=3, **options)
  assert abs(cold - spanned).max() > 1e-3
  # With as many tokens as can matter, or more than there are before a row.
  for warmup in (REACH, 2 * N):
    warm = _losses(
      params, tokens, batch_size=3, warmup_tokens=warmup, **options
    )
    np.testing.assert_allclose(warm, spanned, rtol=1e-5)


@pytest.mark.parametrize('rows', [1, 2, 3, 7])
@pytest.mark.parametrize('warmup', [0, 1, 5, 40])
@pytest.mark.parametrize('n', [2, 30, 65])
def test_warm_up_scores_each_target_once_after_the_text_before_it(
  rows, warmup, n
):
  text, per_row = np.arange(100, 100 + n), -(-(n - 1) // rows)
  read_B, seen = [[] for _ in range(rows)], []
  for batch, target_SBT in eval_batches(
    text, None, batch_size=rows, segment_length=4, segments=2, warmup=warmup
  ):
    for place in np.ndindex(*target_SBT.shape):
      token, target = int(batch.tokens_SBT[place]), int(target_SBT[place])
      if batch.starts_SBT[place]:
        read_B[place[1]] = []  # what stood before is not seen
      read_B[place[1]].append(token)
      if target < 0:
        continue
      assert token == 100 + target
      assert batch.targets_SBT[place] == token + 1
      known = min(target, target % per_row + warmup)
      expected = list(range(token - known, token + 1))
      assert read_B[place[1]][-known - 1 :] == expected
      # The first token of the text comes after nothing.
      if warmup and known == target:
        assert len(read_B[place[1]]) == known + 1 or rows == 1
      seen.append(target)
  assert sorted(seen) == list(range(n - 1))


def test_further_starts_hide_what_is_before_them(params, tokens):
  starts = np.zeros(N, np.bool_)
  starts[120] = True
  mesh = make_mesh(devices=jax.devices()[:1])
  config = EvalConfig(batch_size=1, segment_length=64, memory_length=N)
  arguments = (MODEL, params, tokens, ByteVocabulary(), config, mesh)
  found = token_losses(*arguments, starts=starts)
  whole = token_losses(*arguments)
  np.testing.assert_allclose(found[:120], whole[:120], rtol=1e-5)
  alone = _losses(params, tokens[120:], segment_length=64, memory_length=N)
  np.testing.assert_allclose(found[120:], alone, rtol=1e-5)


def test_sums(tokens):
  losses = np.random.default_rng(1).random(N - 1, np.float32)
  result = summed(losses, tokens, ByteVocabulary())
  assert result.nll_sum == losses.astype(np.float64).sum()
  assert (result.tokens, result.characters) == (N - 1, N - 2)


def test_settings_are_told():
  config = EvalConfig(4, 128, 3800, 3801, 1000, warmup_tokens=2500)
  assert settings_line(config) == (
    '4 rows, warm-up 2,500, segment 128, memory 3,800, attention span 3,801, '
    'clamp 1,000'
  )
  told = settings_line(EvalConfig(memory_length=0, stride=8))
  assert told.endswith('attention span none, clamp none, stride 8')


def test_zeros_cannot_be_warmed_up():
  model = dataclasses.replace(MODEL, memory_start='zeros')
  assert evaluation_model(model, EvalConfig()).memory_start == 'zeros'
  with pytest.raises(InputError, match='warmup_tokens is 3, expected 0'):
    evaluation_model(model, EvalConfig(warmup_tokens=3))
