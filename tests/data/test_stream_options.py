"""Streams without documents, with a roll, and shared among hosts."""

import numpy as np
import pytest

from txl_jax.data.streams import Batch, TrainStream, eval_batches

N, ROWS, LENGTH, SEGMENTS = 203, 4, 5, 2
PER_STEP = LENGTH * SEGMENTS
EPOCH = N // ROWS // PER_STEP  # steps


def _stream(n: int = N, boundary: int | None = None, **options) -> TrainStream:
  return TrainStream(
    np.arange(n, dtype=np.uint16),
    boundary,
    batch_size=ROWS,
    segment_length=LENGTH,
    segments_per_step=SEGMENTS,
    **options,
  )


def _flat(batch: Batch, name: str) -> np.ndarray:
  array_SBT = getattr(batch, name)
  return array_SBT.swapaxes(0, 1).reshape(array_SBT.shape[1], -1)


def test_the_layout_is_that_of_the_paper():
  """Column b of the official iterator is the b-th of B equal parts."""
  n = ROWS * PER_STEP * 6
  stream, columns = _stream(n), np.arange(n).reshape(ROWS, -1)
  for step in range(5):
    low = step * PER_STEP
    for name, shift in (('tokens_SBT', 0), ('targets_SBT', 1)):
      expected = columns[:, low + shift : low + shift + PER_STEP]
      np.testing.assert_array_equal(_flat(stream[step], name), expected)


def test_without_documents_only_the_seam_is_a_start():
  stream = _stream()
  for step in range(12):
    batch = stream[step]
    np.testing.assert_array_equal(batch.starts_SBT, batch.tokens_SBT == 0)
  batches = eval_batches(
    stream.tokens, None, batch_size=2, segment_length=5, segments=3
  )
  assert not any(batch.starts_SBT.any() for batch, _ in batches)


@pytest.mark.parametrize('roll', [False, True])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_together_read_what_one_reads(roll, hosts):
  whole = _stream(roll=roll, seed=3)
  share = ROWS // hosts
  parts = [
    _stream(roll=roll, seed=3, rows=slice(h * share, (h + 1) * share))
    for h in range(hosts)
  ]
  for step in (0, 1, EPOCH, 17, 400):
    for name in Batch._fields:
      found = [getattr(part[step], name) for part in parts]
      expected = getattr(whole[step], name)
      np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)


def test_rolled_rows_read_their_own_part_from_another_place():
  stream, per_row = _stream(roll=True, seed=1), N // ROWS
  entered = []
  for epoch in range(6):
    steps = range(epoch * EPOCH, (epoch + 1) * EPOCH)
    read = np.concatenate(
      [_flat(stream[i], 'tokens_SBT') for i in steps], axis=1
    )
    targets = np.concatenate(
      [_flat(stream[i], 'targets_SBT') for i in steps], axis=1
    )
    starts = np.concatenate(
      [_flat(stream[i], 'starts_SBT') for i in steps], axis=1
    )
    place = read - np.arange(ROWS)[:, None] * per_row
    assert ((0 <= place) & (place < per_row)).all()
    for row in range(ROWS):
      assert len(set(place[row])) == EPOCH * PER_STEP  # none read twice
    following = np.diff(place, axis=1) % per_row
    assert (following == 1).all()
    np.testing.assert_array_equal(targets[:, :-1], read[:, 1:])
    expected = place == 0
    expected[:, 0] = True  # an epoch does not go on where the last one ended
    np.testing.assert_array_equal(starts, expected)
    entered.append(tuple(place[:, 0]))
  assert len(set(entered)) == 6


def test_the_roll_follows_from_seed_and_step():
  one, same, other = (_stream(roll=True, seed=s) for s in (1, 1, 2))
  for step in (9, 2, 0):
    for a, b in zip(one[step], same[step]):
      np.testing.assert_array_equal(a, b)
  assert (one[0].tokens_SBT != other[0].tokens_SBT).any()
