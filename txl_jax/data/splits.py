"""The three splits of a text."""

import numpy as np

from txl_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')
# A character of UTF-8 has at most so many bytes after its first.
CONTINUATION_BYTES = 3


def split_documents(
  documents: list[bytes],
  validation_fraction: float,
  test_fraction: float,
  name: str = 'the text',
) -> dict[str, list[bytes]]:
  """Cuts text into train, validation and test, in this order.

  One document is cut between two characters; several stay whole, and the cuts
  are where documents begin, as near to the fractions as can be.

  Args:
    documents: the text.
    validation_fraction: of all bytes.
    test_fraction: of all bytes.
    name: of the text, in errors.

  Returns:
    Split -> documents; each split has text.

  Raises:
    InputError: if there are too few documents or bytes for that.
  """
  total = sum(map(len, documents))
  edge = total - round(total * test_fraction)
  edges = (edge - round(total * validation_fraction), edge)
  if len(documents) == 1:
    [text] = documents
    low, high = (_character_start(text, max(at, 0)) for at in edges)
    if not 0 < low < high < total:
      raise _too_few(name, total, 'byte')
    parts = [text[:low]], [text[low:high]], [text[high:]]
    return dict(zip(SPLITS, parts))
  sizes = np.array([len(text) for text in documents], np.int64)
  begins = np.cumsum(sizes) - sizes
  # Only a document with text can begin a split; the first begins the first.
  (full,) = np.nonzero(sizes)
  if len(full) < len(SPLITS):
    raise _too_few(name, len(full), 'document')
  first = 1 + _nearest(begins[full[1:-1]], edges[0])
  second = first + 1 + _nearest(begins[full[first + 1 :]], edges[1])
  low, high = full[first], full[second]
  parts = documents[:low], documents[low:high], documents[high:]
  return dict(zip(SPLITS, parts))


def _nearest(begins: np.ndarray, edge: int) -> int:
  return int(np.abs(begins - edge).argmin())


def _character_start(text: bytes, at: int) -> int:
  """Of the next character, or the end; the same place if it is not UTF-8."""
  for place in range(at, at + CONTINUATION_BYTES + 1):
    if place >= len(text) or text[place] & 0xC0 != 0x80:
      return place
  return at


def _too_few(name: str, n: int, unit: str) -> InputError:
  units = unit if n == 1 else f'{unit}s'
  return InputError(
    f'config.data.path: {name} has {n:,} {units}, too few for a train, a '
    'validation and a test split'
  )
