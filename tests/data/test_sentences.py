"""Rows of shuffled sentences, against the filling written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txl_jax.data.sentences import SentenceStream
from txl_jax.errors import InputError

MARK = 0


def _text(lengths: list[int]) -> np.ndarray:
  """Sentences of so many words; each word is told apart by its id."""
  parts, word = [], 1
  for n in lengths:
    parts.append([MARK, *range(word, word + n), MARK])
    word += n
  return np.concatenate(parts).astype(np.uint16)


def _stream(tokens, rows=3, length=4, segments=1, **options) -> SentenceStream:
  return SentenceStream(
    tokens,
    MARK,
    batch_size=rows,
    segment_length=length,
    segments_per_step=segments,
    **options,
  )


def _filled(stream: SentenceStream, epoch: int) -> list:
  """The paper's loop: a list of rows of (input, target) for each batch."""
  order = np.random.default_rng((stream.seed, epoch)).permutation(
    len(stream.first)
  )
  ends = stream.first + stream.pairs
  sentences = iter(
    [stream.tokens[stream.first[i] : ends[i] + 1].tolist() for i in order]
  )
  _, n_rows, length = stream.shape
  rows, batches = [[] for _ in range(n_rows)], []
  while True:
    batch = []
    for row in range(n_rows):
      pairs = []
      while len(pairs) < length:
        if len(rows[row]) <= 1:
          rows[row] = next(sentences, None)
          if rows[row] is None:
            return batches
        pairs.append((rows[row][0], rows[row][1]))
        rows[row] = rows[row][1:]
      batch.append(pairs)
    batches.append(batch)


def _pairs(batch, s: int = 0) -> list:
  return [
    list(zip(tokens.tolist(), targets.tolist()))
    for tokens, targets in zip(batch.tokens_SBT[s], batch.targets_SBT[s])
  ]


lengths = st.lists(st.integers(0, 9), min_size=30, max_size=60)


@settings(max_examples=25, deadline=None)
@given(lengths, st.integers(1, 4), st.integers(1, 6), st.integers(0, 3))
def test_rows_are_filled_as_in_the_paper(lengths, rows, length, seed):
  stream = _stream(_text(lengths), rows, length, seed=seed)
  expected = [*_filled(stream, 0), *_filled(stream, 1), *_filled(stream, 2)]
  found = [_pairs(stream[step]) for step in range(len(expected))]
  assert found == expected


def test_the_end_of_a_sentence_is_never_an_input():
  stream = _stream(_text([3, 5, 1, 0, 2] * 20))
  for step in range(20):
    batch = stream[step]
    both = (batch.tokens_SBT == MARK) & (batch.targets_SBT == MARK)
    # Only an empty sentence has a mark after a mark.
    assert both.sum() <= 6
    assert not batch.starts_SBT.any()


def test_any_step_can_be_asked_for(monkeypatch):
  monkeypatch.setattr('txl_jax.data.sentences.KEPT_EVERY', 4)
  tokens = _text(list(range(1, 40)) * 2)
  forward = _stream(tokens, segments=2)
  expected = [forward[step] for step in range(90)]
  fresh = _stream(tokens, segments=2)
  for step in (70, 3, 4, 89, 0, 41, 40):
    for a, b in zip(fresh[step], expected[step]):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_together_read_what_one_reads(hosts):
  tokens, share = _text(list(range(1, 40))), 4 // hosts
  whole = _stream(tokens, rows=4)
  parts = [
    SentenceStream(
      tokens,
      MARK,
      batch_size=4,
      segment_length=4,
      segments_per_step=1,
      rows=slice(h * share, (h + 1) * share),
    )
    for h in range(hosts)
  ]
  for step in (0, 5, 60):
    found = [part[step].tokens_SBT for part in parts]
    expected = whole[step].tokens_SBT
    np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)


def test_what_is_not_made_of_sentences_is_refused():
  for broken in ([0, 1, 0, 2, 0, 3, 0], [0, 1, 2], [0, 1, 0, 0]):
    with pytest.raises(InputError, match='sentences, each between two marks'):
      _stream(np.array(broken, np.uint16))
  with pytest.raises(InputError, match='too few to fill batch_size 3 rows'):
    _stream(_text([3, 3]))
