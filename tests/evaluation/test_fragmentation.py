"""Loss by place in the segment, and by length of the memory."""

import dataclasses

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.config import EvalConfig
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError
from txl_jax.evaluation.fragmentation import grouped, loss_by_place
from txl_jax.evaluation.memory_sweep import settings_of, sweep
from txl_jax.evaluation.perplexity import evaluate
from txl_jax.parallel.mesh import make_mesh

MODEL = txl_jax.ModelConfig(
  vocab_size=257, n_layers=1, n_heads=1, d_model=8, d_head=8, d_ff=8,
  memory_length=4, init_std=0.4,
)  # fmt: skip


@pytest.mark.parametrize('rows', [1, 3])
def test_places_begin_anew_with_each_row_and_segment(rows):
  n_targets, length = 44, 6
  per_row = -(-n_targets // rows)
  place = [i % per_row % length for i in range(n_targets)]
  losses = np.array(place, np.float32) + 10
  mean_T, count_T = loss_by_place(losses, length, rows)
  np.testing.assert_array_equal(mean_T, 10.0 + np.arange(length))
  assert count_T.tolist() == [place.count(t) for t in range(length)]


@pytest.mark.parametrize('length', [1, 2, 7, 64, 100, 512])
def test_groups_cover_all_places_once(length):
  draw = np.random.default_rng(0)
  mean_T, count_T = draw.random(length), draw.integers(1, 9, length)
  middles, means = grouped(mean_T, count_T)
  assert middles[0] == 1 and (np.diff(middles) > 0).all()
  assert middles[-1] <= length
  assert means[0] == pytest.approx(mean_T[0])
  # Of ones all means are one, and a place without targets changes nothing.
  _, ones = grouped(np.ones(length), count_T)
  np.testing.assert_allclose(ones, 1)
  if length > 1:
    assert means.min() >= mean_T.min() and means.max() <= mean_T.max()


def test_a_sweep_evaluates_with_each_length():
  tokens = np.random.default_rng(0).integers(97, 105, 60).astype(np.uint16)
  params = txl_jax.init_params(MODEL, jax.random.key(0))
  config = EvalConfig(batch_size=1, segment_length=7, memory_length=9)
  mesh = make_mesh(devices=jax.devices()[:1])
  rest = tokens, ByteVocabulary(), config, mesh
  said = []
  found = list(sweep(MODEL, params, *rest, [0, 20], said.append))
  assert [line['memory_length'] for line in found] == [0, 20]
  assert found[0]['nll'] != found[1]['nll']
  assert said[1].startswith('memory 20: bpc ') and '59 tokens' in said[1]
  settings = dataclasses.replace(config, memory_length=20)
  alone = evaluate(MODEL, params, *rest[:2], settings, mesh)
  assert found[1]['nll'] == pytest.approx(alone.nll, rel=1e-6)
  assert found[1]['tokens_per_second'] == 59 / found[1]['seconds']


def test_a_span_grows_with_the_memory():
  spanned = EvalConfig(memory_length=9, attention_span=5)
  assert settings_of(spanned, 3).attention_span == 4
  assert settings_of(EvalConfig(memory_length=9), 3).attention_span is None


@pytest.mark.parametrize(
  ('model', 'config', 'words'),
  [
    (dict(position_encoding='learned', n_positions=4), {}, 'cannot be varied'),
    ({}, dict(stride=1, memory_length=0), 'stride is 1, expected None'),
  ],
)
def test_what_cannot_be_swept(model, config, words):
  model = dataclasses.replace(MODEL, **model)
  arguments = np.zeros(9, np.uint16), ByteVocabulary(), EvalConfig(**config)
  with pytest.raises(InputError, match=words):
    next(sweep(model, {}, *arguments, make_mesh(), [0], print))
