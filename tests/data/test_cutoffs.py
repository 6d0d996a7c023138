"""Cutoffs that need the fewest operations."""

import itertools

import numpy as np
import pytest

from txl_jax.data.cutoffs import expected_operations, propose_cutoffs


def _zipf(size: int) -> np.ndarray:
  return 1e8 / (np.arange(size) + 3.7)


def test_operations_of_a_softmax_without_clusters():
  counts = np.array([5.0, 3.0, 2.0])
  assert expected_operations(counts, (), 8, 1) == 8 * 3


def test_operations_by_hand():
  counts = np.array([5.0, 3.0, 2.0])
  # Head: 1 word and 1 column; half of all tokens are in the other cluster.
  assert expected_operations(counts, (1,), 8, 1) == 8 * 2 + 0.5 * 8 * 2
  narrow = (64 + 8 * 2) + 0.5 * (8 * 4 + 4 * 2)
  assert expected_operations(counts, (1,), 8, 2) == narrow


@pytest.mark.parametrize('div_val', [1, 4])
def test_no_other_cutoffs_are_better_than_those_proposed(div_val):
  counts = _zipf(20_000)
  found = propose_cutoffs(counts, 256, div_val, n_cutoffs=2)
  least = expected_operations(counts, found, 256, div_val)
  low = 200 if div_val == 1 else 1500
  ranks = np.geomspace(low, 19_000, 25).astype(int).tolist()
  for cutoffs in itertools.combinations(ranks, 2):
    # Those proposed stand on a grid of their own.
    assert least < 1.03 * expected_operations(counts, cutoffs, 256, div_val)


def test_a_large_vocabulary_gets_three():
  first, *_, last = cutoffs = propose_cutoffs(_zipf(267_735), 1024, 4)
  assert len(cutoffs) == 3
  assert 20_000 <= first < last < 267_735
  counts = _zipf(267_735)
  paper = expected_operations(counts, (20_000, 40_000, 200_000), 1024, 4)
  assert expected_operations(counts, cutoffs, 1024, 4) <= paper


def test_a_small_vocabulary_needs_none():
  assert propose_cutoffs(_zipf(257), 512, 1) == ()
