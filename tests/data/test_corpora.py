"""Text files and the embedded corpus."""

import collections
import os
import pathlib
import sysconfig

import numpy as np
import pytest

from txl_jax.config import DataConfig
from txl_jax.data.corpora import (
  SPLITS,
  Corpus,
  check_vocabulary,
  load_corpus,
)
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError

BOUNDARY = ByteVocabulary.boundary


@pytest.fixture(scope='module')
def library() -> Corpus:
  """The corpus that every Python carries."""
  return load_corpus(DataConfig())


def _documents(ids: np.ndarray) -> list[bytes]:
  edges = [*np.flatnonzero(ids == BOUNDARY), len(ids)]
  return [
    ids[low + 1 : high].astype(np.uint8).tobytes()
    for low, high in zip(edges, edges[1:])
  ]


def _source_files() -> list[bytes]:
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  skipped = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}
  found = []
  for folder, _, names in os.walk(root):
    parts = pathlib.Path(folder).relative_to(root).parts
    if skipped.isdisjoint(parts) and not any('config-' in p for p in parts):
      found += [os.path.join(folder, n) for n in names if n.endswith('.py')]
  return [pathlib.Path(path).read_bytes() for path in found]


def test_every_file_of_the_library_is_in_exactly_one_split(library):
  found = collections.Counter()
  for split in SPLITS:
    found.update(_documents(library.tokens[split]))
  # As multisets: so no file is missing, in two splits, or of a test folder.
  assert found == collections.Counter(_source_files())


def test_documents_of_the_library_begin_with_a_boundary(library):
  for split in SPLITS:
    ids = library.tokens[split]
    assert ids.dtype == np.uint16
    assert ids[0] == BOUNDARY
    assert ids.max() == BOUNDARY
    assert library.summary()[split]['documents'] == len(_documents(ids))


def test_sizes_of_the_library(library):
  sizes = {split: len(library.tokens[split]) for split in SPLITS}
  total = sum(sizes.values())
  assert total > 5_000_000
  for split in ('validation', 'test'):
    assert 0.01 < sizes[split] / total < 0.1
    assert library.summary()[split]['tokens'] == sizes[split]
    assert library.summary()[split]['documents'] >= 10


def test_two_loads_of_the_library_are_equal(library, monkeypatch):
  # The order in which the file system lists files does not matter.
  listed = pathlib.Path.rglob
  monkeypatch.setattr(
    pathlib.Path,
    'rglob',
    lambda path, pattern: reversed(list(listed(path, pattern))),
  )
  again = load_corpus(DataConfig())
  for split in SPLITS:
    np.testing.assert_array_equal(again.tokens[split], library.tokens[split])
  assert again.fingerprint() == library.fingerprint()
  assert again.summary() == library.summary()


def _raw(corpus: Corpus, split: str) -> bytes:
  (document,) = _documents(corpus.tokens[split])
  return document


@pytest.mark.parametrize('n_bytes', [3, 20, 999, 20_011])
def test_a_text_file_is_split_in_order_and_loses_no_byte(tmp_path, n_bytes):
  path = tmp_path / 'text.txt'
  random = np.random.default_rng(n_bytes)
  raw = random.integers(1, 128, n_bytes, np.uint8).tobytes()
  path.write_bytes(raw)
  config = DataConfig(str(path), 0.3, 0.2)
  if n_bytes < 5:  # 0.2 * 3 is nearer to 1 than to 0.
    config = DataConfig(str(path), 0.3, 0.3)
  corpus = load_corpus(config)
  parts = [_raw(corpus, split) for split in ('train', 'validation', 'test')]
  assert b''.join(parts) == raw
  n_test = n_bytes * config.test_fraction
  assert abs(len(parts[1]) - n_bytes * config.validation_fraction) <= 0.5
  assert abs(len(parts[2]) - n_test) <= 0.5
  assert corpus.name == 'text.txt'
  assert corpus.summary()['train'] == {
    'tokens': len(parts[0]) + 1,
    'documents': 1,
  }


def test_the_fingerprint_is_of_the_text_and_its_splits(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(b'0123456789' * 30)
  first = load_corpus(DataConfig(str(path)))
  other = tmp_path / 'other.txt'
  other.write_bytes(path.read_bytes())
  assert load_corpus(DataConfig(str(other))).fingerprint() == (
    first.fingerprint()
  )
  moved = load_corpus(DataConfig(str(path), 0.1, 0.05))
  assert moved.fingerprint() != first.fingerprint()
  other.write_bytes(path.read_bytes()[:-1] + b'8')
  changed = load_corpus(DataConfig(str(other)))
  assert changed.fingerprint() != first.fingerprint()


def _empty(folder: pathlib.Path) -> pathlib.Path:
  path = folder / 'nothing.txt'
  path.touch()
  return path


def _short(folder: pathlib.Path) -> pathlib.Path:
  path = folder / 'short.txt'
  path.write_text('123456789')
  return path


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (_empty, 'is empty'),
    (_short, 'has 9 bytes, too few'),
    (lambda folder: folder, 'is a folder without any text'),
    (lambda folder: folder / 'missing.txt', 'No such file'),
    (lambda folder: _empty(folder) / 'inside.txt', 'Not a directory'),
  ],
)
def test_what_is_no_text_is_named(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError) as caught:
    load_corpus(DataConfig(str(path)))
  assert message in str(caught.value)
  assert str(path) in str(caught.value)
  assert str(caught.value).startswith('config.data.path: ')


def test_an_id_beyond_the_vocabulary_is_named_with_its_place():
  tokens = {
    'train': np.array([256, 1, 2], np.uint16),
    'validation': np.array([256, 1], np.uint16),
    'test': np.array([1, 2, 3, 200, 256], np.uint16),
  }
  corpus = Corpus('the text', tokens, ByteVocabulary())
  check_vocabulary(corpus, 257)
  with pytest.raises(InputError) as caught:
    check_vocabulary(corpus, 256)
  assert str(caught.value) == (
    'config.model.vocab_size is 256, but token 0 of the train split of the '
    'text has the id 256; its vocabulary has 257 tokens'
  )
  small = {split: ids[1:] for split, ids in tokens.items()}
  with pytest.raises(InputError, match='token 2 of the test split .* id 200;'):
    check_vocabulary(Corpus('the text', small, ByteVocabulary()), 200)
