"""The cache reads on as a sliding memory does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.model.cache import (
  compact,
  compute_copy,
  init_cache,
  read_cached,
  remembered,
)
from txl_jax.model.segments import begin_reading

B, V = 2, 20
SMALL = txl_jax.ModelConfig(
  vocab_size=V, n_layers=2, d_model=8, n_heads=2, d_head=6, d_ff=8
)


@functools.cache
def _params(config):
  params = txl_jax.init_params(config, jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  # Far from their initial values, where attention is nearly uniform.
  noise = np.random.default_rng(0)
  return tree.unflatten(
    [leaf + 0.3 * noise.normal(size=leaf.shape) for leaf in leaves]
  )


def _text(S, T):
  tokens = np.random.default_rng(1).integers(0, V, (2, S, B, T), np.int32)
  return jnp.asarray(tokens)


@pytest.mark.parametrize(
  ('S', 'T', 'changes'),
  [
    # Blocks of three segments, compacted between; a clamp inside the memory.
    (6, 2, dict(memory_length=24, clamp_length=5, cutoffs=(5, 9), div_val=2)),
    # A span, so that the oldest slots are not seen; documents.
    (4, 1, dict(memory_length=9, attention_span=8, untie_biases=True)),
    # A segment longer than the memory; layer norm first.
    (2, 5, dict(memory_length=3, pre_norm=True)),
    (2, 3, dict(memory_length=0)),
    (2, 3, dict(memory_length=8, memory_start='zeros')),
  ],
)
def test_projected_memory_gives_the_losses_of_hidden_states(S, T, changes):
  config = dataclasses.replace(SMALL, **changes)
  params, (tokens_SBT, targets_SBT) = _params(config), _text(S, T)
  starts_SBT = None
  if config.memory_start == 'empty':
    starts_SBT = jnp.asarray(np.arange(S * B * T).reshape(S, B, T) % 7 == 5)
  hidden = txl_jax.init_memory(config, B)
  score = functools.partial(
    txl_jax.score_segments, config, params, tokens_SBT, targets_SBT
  )
  nll_SBT, after = score(hidden, starts_SBT=starts_SBT)
  projected = txl_jax.project_memory(config, params, hidden)
  cached_SBT, kept = score(projected, starts_SBT=starts_SBT)
  np.testing.assert_allclose(cached_SBT, nll_SBT, rtol=2e-5, atol=2e-5)
  expected = txl_jax.project_memory(config, params, after)
  np.testing.assert_array_equal(kept.valid_B, expected.valid_B)
  seen_BM = np.arange(kept.length) >= kept.length - kept.valid_B[:, None]
  for ours, theirs in zip(kept.layers, expected.layers):
    np.testing.assert_allclose(
      np.asarray(ours)[:, seen_BM], np.asarray(theirs)[:, seen_BM], atol=2e-4
    )


def _encoded(encoding, *, memory_length, n_positions):
  return dataclasses.replace(
    SMALL,
    memory_length=memory_length,
    position_encoding=encoding,
    n_positions=None if encoding == 'relative' else n_positions,
  )


@pytest.mark.parametrize('encoding', ['relative', 'shaw'])
def test_calls_that_share_a_cache_go_on_from_each_other(encoding):
  config = _encoded(encoding, memory_length=16, n_positions=12)
  params, (tokens_SBT, targets_SBT) = _params(config), _text(12, 2)
  start = txl_jax.init_memory(config, B)
  expected, _ = txl_jax.score_segments(
    config, params, tokens_SBT, targets_SBT, start
  )
  cache = begin_reading(config, params, start, n_segments=4, segment_length=2)
  for n in range(0, 12, 4):
    nll_SBT, cache = txl_jax.score_segments(
      config, params, tokens_SBT[n : n + 4], targets_SBT[n : n + 4], cache
    )
    np.testing.assert_allclose(
      nll_SBT, expected[n : n + 4], rtol=2e-5, atol=2e-5
    )


def test_what_a_cache_cannot_do():
  config = dataclasses.replace(SMALL, memory_length=8)
  params, (tokens_SBT, targets_SBT) = _params(config), _text(1, 50)
  cache = begin_reading(
    *(config, params, txl_jax.init_memory(config, B)),
    n_segments=1,
    segment_length=2,
  )
  score = functools.partial(txl_jax.score_segments, config, params)
  with pytest.raises(txl_jax.errors.InputError, match='of 50, expected at'):
    score(tokens_SBT, targets_SBT, cache)
  with pytest.raises(txl_jax.errors.InputError, match='dropout_key'):
    short = tokens_SBT[..., :2], targets_SBT[..., :2]
    score(*short, cache, dropout_key=jax.random.key(0))


def test_gradients_do_not_cross_segments():
  config = dataclasses.replace(SMALL, n_layers=1, memory_length=16)
  params, (tokens_SBT, targets_SBT) = _params(config), _text(2, 2)

  def loss(params, memory):
    nll_SBT, _ = txl_jax.score_segments(
      config, params, tokens_SBT, targets_SBT, memory
    )
    return nll_SBT.sum()

  def segment_by_segment(params, memory):
    total = 0
    for tokens_BT, targets_BT in zip(tokens_SBT, targets_SBT):
      nll_BT, memory = txl_jax.score(
        config, params, tokens_BT, targets_BT, memory
      )
      total += nll_BT.sum()
    return total

  memory = txl_jax.init_memory(config, B)
  memory = txl_jax.project_memory(config, params, memory)
  ours = jax.jit(jax.grad(loss))(params, memory)
  theirs = jax.jit(jax.grad(segment_by_segment))(params, memory)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    ours,
    theirs,
  )


@pytest.mark.parametrize('encoding', ['relative', 'shaw'])
def test_what_is_read_does_not_depend_on_where_it_lies(encoding):
  config = _encoded(encoding, memory_length=5, n_positions=6)
  params, ((tokens_SBT, _)) = _params(config), _text(3, 2)
  memory = txl_jax.init_memory(config, B)
  spacious = init_cache(config, params, memory, room=6)
  narrow = init_cache(config, params, memory, room=2)
  read = jax.jit(read_cached, static_argnums=0)
  for tokens_BT in tokens_SBT:
    here_BTD, spacious = read(config, params, tokens_BT, spacious)
    there_BTD, narrow = read(config, params, tokens_BT, narrow)
    narrow = compact(narrow)
    np.testing.assert_allclose(here_BTD, there_BTD, rtol=1e-5, atol=1e-5)
  ours, theirs = remembered(config, spacious), remembered(config, narrow)
  np.testing.assert_array_equal(ours.valid_B, theirs.valid_B)
  np.testing.assert_allclose(ours.keys_NBMHC, theirs.keys_NBMHC, atol=1e-5)


def test_a_compute_copy_leaves_what_is_used_in_float32():
  config = dataclasses.replace(SMALL, dtype='bfloat16', cutoffs=(5,))
  params = txl_jax.init_params(config, jax.random.key(0))
  copy = compute_copy(config, params)
  narrow = {
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(copy)
    if leaf.dtype == jnp.bfloat16
  }
  assert "['layers']['attention']['query']" in narrow
  assert "['embedding']['table_0']" in narrow
  assert not any('norm' in name for name in narrow)
  assert "['softmax']['bias']" not in narrow
