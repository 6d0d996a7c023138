"""A text is cut into three splits, and nothing is lost."""

import hypothesis
import pytest
from hypothesis import strategies

from txl_jax.data.splits import SPLITS, split_documents
from txl_jax.errors import InputError

FRACTION = strategies.floats(0.001, 0.499)
DOCUMENTS = strategies.lists(strategies.binary(max_size=9))
# Without a deadline, for busy machines, and without a folder of failures.
SETTINGS = hypothesis.settings(deadline=None, database=None)


@SETTINGS
@hypothesis.given(strategies.text(max_size=300), FRACTION, FRACTION)
def test_one_document_is_cut_between_characters(text, validation, test):
  raw = text.encode()
  edge = len(raw) - round(len(raw) * test)
  edges = (edge - round(len(raw) * validation), edge)
  starts = [len(text[:i].encode()) for i in range(len(text) + 1)]
  low, high = (min(s for s in starts if s >= at) for at in edges)
  expected = [raw[:low], raw[low:high], raw[high:]]
  if not all(expected):
    with pytest.raises(InputError, match=r'too few for a train, a validation'):
      split_documents([raw], validation, test)
  else:
    parts = split_documents([raw], validation, test)
    assert parts == {s: [p] for s, p in zip(SPLITS, expected)}


@SETTINGS
@hypothesis.given(DOCUMENTS.filter(lambda x: len(x) != 1), FRACTION, FRACTION)
def test_several_documents_stay_whole(documents, validation, test):
  if sum(map(bool, documents)) < 3:
    with pytest.raises(InputError, match=r'has [012] documents?, too few'):
      split_documents(documents, validation, test)
    return
  parts = split_documents(documents, validation, test)
  assert [text for part in parts.values() for text in part] == documents
  assert all(any(part) for part in parts.values())


def test_cuts_are_nearest_to_the_fractions():
  # As near as whole documents can be: one of 100 is either all or nothing.
  for sizes, expected in (
    ([10] * 10, [8, 1, 1]),
    ([5, 5, 100, 5, 5], [3, 1, 1]),
    ([100, 5, 5, 5, 5], [1, 2, 2]),
    ([1, 1, 1000], [1, 1, 1]),
    ([1000, 1, 1], [1, 1, 1]),
  ):
    parts = split_documents([b'x' * size for size in sizes], 0.1, 0.1)
    assert [len(parts[split]) for split in SPLITS] == expected
  parts = split_documents([b'\x80' * 100], 0.1, 0.1)  # no character starts
  assert [len(text) for [text] in parts.values()] == [80, 10, 10]


def test_too_few_bytes_are_counted():
  with pytest.raises(InputError, match='the text has 9 bytes, too few'):
    split_documents([b'123456789'], 0.05, 0.05)
