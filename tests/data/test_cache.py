"""Prepared corpora: whole or not there."""

import errno
import json

import numpy as np
import pytest

from txl_jax.data.cache import read_cache, write_cache
from txl_jax.data.splits import SPLITS
from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError


def _write(folder, vocabulary=None, **changes) -> list:
  told = []
  splits = {split: [np.arange(5), np.arange(7)] for split in SPLITS} | changes
  vocabulary = vocabulary or ByteVocabulary()
  write_cache(folder, 'a text', vocabulary, splits, lambda *a: told.append(a))
  return told


def test_what_is_written_is_read(tmp_path):
  told = _write(tmp_path / 'a', test=[np.array([256, 1])])
  name, vocabulary, tokens = read_cache(tmp_path / 'a')
  assert name == 'a text'
  assert vocabulary.size == 257
  assert tokens['train'].tolist() == [*range(5), *range(7)]
  assert tokens['test'].tolist() == [256, 1]
  assert tokens['train'].dtype == np.uint16
  assert isinstance(tokens['train'], np.memmap)
  assert told[:2] == [('train', 5), ('train', 12)]
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_ids_of_a_large_vocabulary_fit(tmp_path):
  vocabulary = SymbolVocabulary(range(70_000), 'character', documents=True)
  _write(tmp_path / 'a', vocabulary, train=[np.array([70_000, 3])])
  tokens = read_cache(tmp_path / 'a')[2]
  assert tokens['train'].tolist() == [70_000, 3]


def test_nothing_prepared_is_none(tmp_path):
  assert read_cache(tmp_path / 'a') is None


def _interrupted():
  yield np.arange(3)
  raise KeyboardInterrupt


def _full():
  yield np.arange(3)
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_an_interruption_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path / 'a', validation=_interrupted())
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
  with pytest.raises(InputError, match='cannot write .*: No space left on dev'):
    _write(tmp_path / 'a', test=_full())
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='config.data.cache_dir: cannot write'):
    _write(tmp_path / 'file' / 'a')


@pytest.mark.parametrize(
  'name', ['train.bin', 'vocabulary.json', 'corpus.json', 'test.bin']
)
@pytest.mark.parametrize('damage', ['cut', 'delete', 'flip'])
def test_damage_is_noticed(tmp_path, name, damage):
  _write(tmp_path / 'a')
  path = tmp_path / 'a' / name
  raw = bytearray(path.read_bytes())
  if damage == 'delete':
    path.unlink()
  elif damage == 'cut':
    path.write_bytes(raw[: len(raw) // 2])
  else:
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
  if name == 'corpus.json' and damage == 'delete':
    assert read_cache(tmp_path / 'a') is None
    return
  try:
    found = read_cache(tmp_path / 'a')
  except InputError as error:
    assert 'txl prepare' in str(error)
    return
  # A flipped bit in the summary may change a name or size that nothing reads.
  assert (name, damage) == ('corpus.json', 'flip')
  assert found[2]['train'].tolist() == [*range(5), *range(7)]


def test_who_comes_second_takes_what_is_there(tmp_path):
  def meanwhile():
    _write(tmp_path / 'a')
    yield np.arange(3)

  _write(tmp_path / 'a', train=meanwhile())
  assert len(read_cache(tmp_path / 'a')[2]['train']) == 12
  assert [path.name for path in tmp_path.iterdir()] == ['a']
  summary = json.loads((tmp_path / 'a' / 'corpus.json').read_text())
  assert summary['tokens']['train'] == 12
