"""Vocabularies of the other implementations, from all their files."""

import collections
import pathlib
import pickle

import numpy as np
import pytest

from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.data.words import WordVocabulary
from txl_jax.errors import InputError
from txl_jax.interop.torch_writing import save_pickle, save_torch
from txl_jax.interop.vocabularies import (
  from_symbols,
  read_vocabulary,
  to_symbols,
  vocabulary_state,
)

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'checkpoints'
WORDS = ['<eos>', *(f'w{i}' for i in range(39))]


@pytest.mark.parametrize('name', ['cache.pt', 'cache.pkl'])
def test_a_corpus_of_the_official_code(name):
  vocabulary = read_vocabulary(FOLDER / 'official' / name)
  assert vocabulary.words == WORDS
  assert not vocabulary.lower_case


def _write(path: pathlib.Path, symbols: list[str]) -> None:
  state = {
    'idx2sym': symbols,
    'sym2idx': collections.OrderedDict((s, i) for i, s in enumerate(symbols)),
    'counter': collections.Counter(symbols),
    'lower_case': True,
  }
  if path.suffix == '.pkl':
    path.write_bytes(pickle.dumps(state))
  elif path.suffix == '.bin':
    save_torch(path, state)
  else:
    path.write_text('\n'.join(symbols))


@pytest.mark.parametrize('name', ['vocab.pkl', 'vocab.bin', 'vocab.txt'])
def test_files_of_hugging_face_and_text(tmp_path, name):
  _write(tmp_path / name, ['<eos>', 'été', '<unk>'])
  vocabulary = read_vocabulary(tmp_path / name)
  assert vocabulary.words == ['<eos>', 'été', '<unk>']
  assert vocabulary.encode('été Ä').tolist() == [1, 2, 0]
  assert vocabulary.lower_case == (name != 'vocab.txt')


def test_python_2_wrote_bytes(tmp_path):
  """Words as byte strings, in a class of the old kind."""
  words = b''.join(b'U' + bytes([len(w)]) + w for w in (b'<eos>', 'é'.encode()))
  content = b'\x80\x02}U\x07idx2sym](' + words + b'es.'
  (tmp_path / 'vocab.pkl').write_bytes(content)
  assert read_vocabulary(tmp_path / 'vocab.pkl').words == ['<eos>', 'é']


def test_numbers_are_bytes_and_single_characters_are_characters():
  raw = from_symbols(['32', '101', '116'], True)
  assert isinstance(raw, SymbolVocabulary)
  assert raw.decode(raw.encode('te et')) == 'te et'
  text = from_symbols(['_', 'e', 't'], True)
  assert text.encode('e t').tolist() == [1, 0, 2]
  assert isinstance(from_symbols(['32', '300'], False), WordVocabulary)
  assert isinstance(from_symbols(['e', 't'], False), WordVocabulary)


@pytest.mark.parametrize(
  'symbols', [['32', '101'], ['_', 'e'], ['<eos>', 'w'], ['<S>', '<UNK>', 'a']]
)
def test_symbols_go_there_and_back(symbols, tmp_path):
  vocabulary = from_symbols(symbols, False)
  assert to_symbols(vocabulary) == symbols
  save_pickle(tmp_path / 'vocab.pkl', vocabulary_state(vocabulary))
  again = read_vocabulary(tmp_path / 'vocab.pkl')
  assert again.to_json() == vocabulary.to_json()
  # What is written here is an ordinary pickle.
  state = pickle.loads((tmp_path / 'vocab.pkl').read_bytes())
  assert state['sym2idx'][symbols[-1]] == len(symbols) - 1


def test_documents_are_not_known_elsewhere():
  assert vocabulary_state(ByteVocabulary()) is None
  assert vocabulary_state(None) is None


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ({'idx2sym': ['a', 'a']}, "symbol 1 of the vocabulary is 'a', again"),
    ({'idx2sym': ['a', 3]}, 'symbol 1 of the vocabulary is 3, which is no'),
    ({'idx2sym': []}, 'holds no vocabulary'),
    ({'words': ['a']}, 'holds no vocabulary'),
    (np.zeros(3, np.float32), 'holds no vocabulary'),
  ],
)
def test_what_is_no_vocabulary_is_named(tmp_path, value, message):
  save_torch(tmp_path / 'vocab.bin', value)
  with pytest.raises(InputError, match=message):
    read_vocabulary(tmp_path / 'vocab.bin')
