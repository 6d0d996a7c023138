"""The segments of step i follow from i alone, and no token is lost."""

import numpy as np
import pytest

from txl_jax.data.streams import Batch, TrainStream, eval_batches
from txl_jax.errors import InputError

BOUNDARY = 0  # In these corpora each id is its own position.


def _stream(n: int, rows: int, length: int, segments: int = 1) -> TrainStream:
  return TrainStream(
    np.arange(n, dtype=np.uint16),
    BOUNDARY,
    batch_size=rows,
    segment_length=length,
    segments_per_step=segments,
  )


def _flat(batch: Batch, name: str) -> np.ndarray:
  """Each row's S x T tokens in the order in which it reads them."""
  array_SBT = getattr(batch, name)
  return array_SBT.swapaxes(0, 1).reshape(array_SBT.shape[1], -1)


@pytest.mark.parametrize('n', [120, 127, 131])
def test_rows_are_the_text_in_order_and_wrap_around(n):
  rows, length, segments = 4, 5, 2
  stream = _stream(n, rows, length, segments)
  steps = 2 * n // (length * segments)  # Around the ring twice.
  read = np.concatenate(
    [_flat(stream[i], 'tokens_SBT') for i in range(steps)], axis=1
  )
  starts = read[:, 0]
  assert starts[0] == 0
  assert set(np.diff([*starts, n])) <= {n // rows, -(-n // rows)}
  np.testing.assert_array_equal(read[:, 1:], (read[:, :-1] + 1) % n)


def test_targets_are_the_next_tokens():
  n = 131
  stream = _stream(n, 4, 5, 2)
  for i in (0, 1, 12, 13, 100):
    batch = stream[i]
    np.testing.assert_array_equal(batch.targets_SBT, (batch.tokens_SBT + 1) % n)


def test_starts_mark_the_boundaries():
  tokens = np.array([9, 1, 2, 9, 9, 3, 4, 5, 9, 6, 7, 8], np.uint16)
  stream = TrainStream(
    tokens, 9, batch_size=2, segment_length=3, segments_per_step=2
  )
  batch = stream[0]
  np.testing.assert_array_equal(
    _flat(batch, 'tokens_SBT'), tokens.reshape(2, 6)
  )
  np.testing.assert_array_equal(
    _flat(batch, 'starts_SBT'), (tokens == 9).reshape(2, 6)
  )


def test_types_and_shapes():
  batch = _stream(200, 4, 5, 3)[7]
  for name in ('tokens_SBT', 'targets_SBT', 'starts_SBT'):
    assert getattr(batch, name).shape == (3, 4, 5)
  assert batch.tokens_SBT.dtype == batch.targets_SBT.dtype == np.int32
  assert batch.starts_SBT.dtype == bool


def test_a_step_needs_nothing_from_before():
  n, order = 131, [17, 3, 400_000, 0, 17]
  forward = _stream(n, 4, 5)
  _ = [forward[i] for i in range(18)]
  for i in order:
    expected, found = forward[i], _stream(n, 4, 5)[i]
    for a, b in zip(expected, found):
      np.testing.assert_array_equal(a, b)


def test_segments_in_a_step_equal_as_many_steps():
  many, one = _stream(131, 4, 5, 3), _stream(131, 4, 5, 1)
  for i in (0, 1, 9):
    for name in Batch._fields:
      expected = np.concatenate(
        [getattr(one[3 * i + s], name) for s in range(3)]
      )
      np.testing.assert_array_equal(getattr(many[i], name), expected)


def test_every_token_is_read_exactly_once_in_a_pass():
  rows, length, steps = 4, 5, 6
  n = rows * length * steps
  stream = _stream(n, rows, length)
  for first in (0, steps, 5 * steps):
    read = [stream[first + i].tokens_SBT.ravel() for i in range(steps)]
    np.testing.assert_array_equal(np.sort(np.concatenate(read)), np.arange(n))


@pytest.mark.parametrize(('n', 'rows'), [(131, 4), (97, 8), (101, 1)])
def test_each_row_reads_every_token_once_around_the_ring(n, rows):
  stream = _stream(n, rows, 1)
  read = np.concatenate([stream[i].tokens_SBT.ravel() for i in range(n)])
  assert (np.bincount(read, minlength=n) == rows).all()
  # Rows of unequal parts still cover the text in one pass of the longest.
  longest = -(-n // rows)
  once = np.concatenate([stream[i].tokens_SBT.ravel() for i in range(longest)])
  assert len(np.unique(once)) == n
  assert len(once) - n < rows


def test_far_steps_do_not_overflow():
  # Steps x segment x length exceeds 2**31, as a long run's does.
  n, far = 40_000, 5_000_000
  stream = _stream(n, 2, 512, 4)
  expected = (far * 4 * 512 + np.arange(4 * 512)) % n
  np.testing.assert_array_equal(_flat(stream[far], 'tokens_SBT')[0], expected)


def test_a_text_shorter_than_a_step_is_refused():
  assert _stream(24, 2, 4, 3)[0].tokens_SBT.size == 24
  with pytest.raises(InputError) as caught:
    _stream(23, 2, 4, 3)
  assert 'has 23 tokens, fewer than the 24 of one step' in str(caught.value)
  assert 'batch_size 2' in str(caught.value)


@pytest.mark.parametrize('n', [2, 3, 49, 50, 51, 97])
@pytest.mark.parametrize(('rows', 'length'), [(1, 7), (4, 3), (8, 50)])
def test_evaluation_scores_every_target_once(n, rows, length):
  tokens = np.arange(n, dtype=np.uint16)
  batches = eval_batches(
    tokens, BOUNDARY, batch_size=rows, segment_length=length, segments=2
  )
  inputs_B = [[] for _ in range(rows)]
  for batch, target_SBT in batches:
    counts_SBT = target_SBT >= 0
    assert batch.tokens_SBT.shape == counts_SBT.shape == (2, rows, length)
    counted = batch.targets_SBT[counts_SBT]
    np.testing.assert_array_equal(counted, batch.tokens_SBT[counts_SBT] + 1)
    np.testing.assert_array_equal(counted, target_SBT[counts_SBT] + 1)
    starts = counts_SBT & (batch.tokens_SBT == BOUNDARY)
    np.testing.assert_array_equal(batch.starts_SBT, starts)
    for b in range(rows):
      inputs_B[b] += batch.tokens_SBT[:, b][counts_SBT[:, b]].tolist()
  # A row begins with the input after the last of the row before.
  assert sum(inputs_B, []) == list(range(n - 1))
