"""One Billion Word's two ways of counting."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.config import EvalConfig
from txl_jax.data.words import WordVocabulary
from txl_jax.evaluation.perplexity import evaluate
from txl_jax.parallel.mesh import make_mesh

VOCABULARY = WordVocabulary(['<S>', 'the', '<UNK>', 'cat', 'dog'])
MODEL = txl_jax.ModelConfig(
  vocab_size=5,
  n_layers=1,
  n_heads=1,
  d_model=8,
  d_head=8,
  d_ff=8,
  memory_length=50,
  init_std=0.5,
)


def test_both_conventions():
  tokens = VOCABULARY.encode('the cat\nthe dog dog\n\nthe bird\n')
  params = txl_jax.init_params(MODEL, jax.random.key(0))
  config = EvalConfig(batch_size=1, segment_length=7, memory_length=50)
  mesh = make_mesh(devices=jax.devices()[:1])
  result = evaluate(MODEL, params, tokens, VOCABULARY, config, mesh)
  nll_BT, _ = txl_jax.score(
    MODEL,
    params,
    tokens[None, :-1].astype(np.int32),
    tokens[None, 1:].astype(np.int32),
    txl_jax.init_memory(MODEL, 1),
  )
  # Between sentences, and within the empty one.
  certain = (tokens[:-1] == 0) & (tokens[1:] == 0)
  assert certain.sum() == result.starts == 4
  assert result.ppl == pytest.approx(math.exp(nll_BT.mean()), rel=1e-5)
  without = math.exp(nll_BT[0][~certain].mean())
  assert result.ppl_without_starts == pytest.approx(without, rel=1e-5)
  assert result.to_json()['ppl_without_starts'] == result.ppl_without_starts


def test_other_texts_have_one_convention():
  words = WordVocabulary(['<eos>', 'the', '<unk>', 'cat', 'dog'])
  tokens = words.encode('the cat\n\nthe dog\n')
  params = txl_jax.init_params(MODEL, jax.random.key(0))
  config = EvalConfig(batch_size=1, segment_length=7, memory_length=50)
  mesh = make_mesh(devices=jax.devices()[:1])
  model = dataclasses.replace(MODEL)
  result = evaluate(model, params, tokens, words, config, mesh)
  assert result.starts == 0
  assert 'ppl_without_starts' not in result.to_json()
