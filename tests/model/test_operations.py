"""Operation counts: by hand, against the softmax's, and of known models."""

import dataclasses
import pathlib

import numpy as np
import pytest

from txl_jax.config import ModelConfig
from txl_jax.data.cutoffs import expected_operations
from txl_jax.model.operations import (
  natural_frequencies,
  operations_per_token,
  training_operations_per_token,
  visible_keys_per_query,
)

CUTOFFS = (20_000, 40_000, 200_000)
WT103 = dict(vocab_size=267_735, cutoffs=CUTOFFS)
BASE = dict(n_layers=16, d_model=410, n_heads=10, d_head=41, d_ff=2100)
NVIDIA = dict(n_layers=16, d_model=512, n_heads=8, d_head=64, d_ff=2048)
LARGE = dict(n_layers=18, d_model=1024, n_heads=16, d_head=64, d_ff=4096)
ENWIK8 = dict(n_layers=24, d_model=1024, n_heads=8, d_head=128, d_ff=3072)
# Sizes, rows, segment and memory; millions a token, forward and in training.
KNOWN = {
  'wt103_base': (WT103 | BASE, 60, 150, 116, 339),
  'wt103_base_nvidia': (WT103 | NVIDIA, 256, 192, 157, 453),
  'wt103_large': (WT103 | LARGE | {'div_val': 4}, 128, 384, 637, 1834),
  'enwik8_base': (
    NVIDIA | dict(vocab_size=204, n_layers=12),
    22,
    512,
    117,
    339,
  ),
  'enwik8_large': (ENWIK8 | dict(vocab_size=204), 64, 768, 776, 2227),
}


def _counts() -> np.ndarray:
  """Counts with the clusters' shares of WikiText-103."""
  sizes = np.diff([0, *CUTOFFS, 267_735])
  return np.repeat(np.array([0.953, 0.021, 0.024, 0.002]) / sizes, sizes)


@pytest.mark.parametrize('name', KNOWN)
def test_known_models(name):
  sizes, rows, length, forward, training = KNOWN[name]
  config = ModelConfig(**sizes, memory_length=length)
  counts = _counts() if config.cutoffs else None
  found = operations_per_token(
    config, batch_size=rows, segment_length=length, counts_V=counts
  )
  assert round(found.forward / 1e6) == forward
  assert round(found.training / 1e6) == training


@pytest.mark.parametrize('name', KNOWN)
def test_the_page_has_the_same_numbers(name):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'performance.md'
  numbers = ' | '.join(map(str, KNOWN[name][1:]))
  assert f'| `{name}` | {numbers} |' in page.read_text()


@pytest.mark.parametrize('name', KNOWN)
def test_the_estimate_of_frequencies_is_near(name):
  sizes, rows, length, _, training = KNOWN[name]
  config = ModelConfig(**sizes, memory_length=length)
  found = training_operations_per_token(
    config, batch_size=rows, segment_length=length
  )
  assert found / 1e6 == pytest.approx(training, rel=0.01)


def test_a_small_model_by_hand():
  config = ModelConfig(
    vocab_size=10,
    n_layers=1,
    n_heads=1,
    d_model=2,
    d_head=3,
    d_ff=5,
    memory_length=4,
  )
  found = operations_per_token(config, batch_size=2, segment_length=2)
  assert found.projections == 2 * (4 * 2 * 3)
  assert found.feed_forward == 2 * (2 * 2 * 5)
  # Six rows of R, projected once for the four tokens of the batch.
  assert found.positions == pytest.approx(2 * (6 * 2 * 3) / 4)
  # Four remembered positions for two tokens.
  assert found.memory == 2 * (2 * 2 * 3) * 4 / 2
  # Five and six visible keys, three products of width 3 each.
  assert found.attention == 2 * 3 * 3 * 5.5
  assert found.softmax == pytest.approx(2 * 2 * 10)
  assert found.training == pytest.approx(3 * found.forward - found.memory)


def test_absolute_positions_cost_nothing_in_attention():
  relative = ModelConfig(vocab_size=10, memory_length=0)
  absolute = dataclasses.replace(
    relative, position_encoding='learned', n_positions=8
  )
  first, second = (
    operations_per_token(config, batch_size=1, segment_length=8)
    for config in (relative, absolute)
  )
  assert second.positions == second.memory == 0 < first.positions
  assert second.attention == pytest.approx(first.attention * 2 / 3)


@pytest.mark.parametrize('span', [1, 3, 6, 9, None])
def test_visible_keys_are_counted_one_by_one(span):
  config = ModelConfig(vocab_size=10, memory_length=8, attention_span=span)
  most = 99 if span is None else span
  seen = [min(8 + i + 1, most) for i in range(5)]
  assert visible_keys_per_query(config, 5) == pytest.approx(np.mean(seen))


@pytest.mark.parametrize('div_val', [1, 2, 4])
def test_the_softmax_is_that_by_which_cutoffs_are_chosen(div_val):
  config = ModelConfig(
    vocab_size=5000, cutoffs=(100, 900), d_model=64, div_val=div_val
  )
  counts = np.random.default_rng(0).integers(1, 50, 5000)
  sizes = dict(batch_size=1, segment_length=1, counts_V=counts)
  expected = 2 * expected_operations(counts, (100, 900), 64, div_val)
  found = operations_per_token(config, **sizes).softmax
  assert found == pytest.approx(expected)


def test_frequencies_of_a_large_vocabulary():
  shares = natural_frequencies(267_735)
  assert shares.sum() == pytest.approx(1)
  assert (np.diff(shares) < 0).all()
  masses = [part.sum() for part in np.split(shares, CUTOFFS)]
  assert masses == pytest.approx([0.953, 0.021, 0.024, 0.002], abs=0.003)
