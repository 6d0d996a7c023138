"""Vocabularies and ids equal those of the paper's code."""

import json
import pathlib

import numpy as np
import pytest

from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import Vocabulary, vocabulary_from_json
from txl_jax.data.words import WordVocabulary

PATH = pathlib.Path(__file__).parents[1] / 'fixtures/official_vocabulary.json'
CASES = json.loads(PATH.read_text())
SPLITS = ('train', 'valid', 'test')


def _vocabulary(name: str, texts: list[bytes], folder: pathlib.Path):
  if name in ('enwik8', 'text8'):
    return SymbolVocabulary.of(texts, 'byte', documents=False)
  if name == 'lm1b':
    path = folder / 'vocabulary.txt'
    words = CASES['lm1b']['symbols']
    path.write_text(''.join(f'{word} 7\n' for word in words))
    return WordVocabulary.from_file(path)
  counted = texts[:1] if name == 'wt103' else texts
  return WordVocabulary.of(counted, lower_case=name == 'ptb')


def _symbols(vocabulary: Vocabulary) -> list[str]:
  if isinstance(vocabulary, SymbolVocabulary):
    return [str(symbol) for symbol in vocabulary.symbols]
  return vocabulary.words


@pytest.mark.parametrize('name', CASES)
def test_symbols_and_ids(name, tmp_path):
  case = CASES[name]
  texts = [
    text.encode() if isinstance(text, str) else bytes(text)
    for text in (case['texts'][split] for split in SPLITS)
  ]
  vocabulary = _vocabulary(name, texts, tmp_path)
  assert _symbols(vocabulary) == case['symbols']
  assert vocabulary.size == len(case['symbols'])
  assert vocabulary.boundary is None
  again = vocabulary_from_json(vocabulary.to_json())
  for text, split in zip(texts, SPLITS):
    assert vocabulary.encode(text).tolist() == case['ids'][split]
    assert again.encode(text).tolist() == case['ids'][split]


@pytest.mark.parametrize('name', ['wt103', 'ptb', 'lm1b'])
def test_pieces_of_whole_lines_give_the_ids_of_the_whole(name, tmp_path):
  text = CASES[name]['texts']['train'].encode()
  vocabulary = _vocabulary(name, [text, text, text], tmp_path)
  lines = text.splitlines(keepends=True)
  pieces = [b''.join(lines[:3]), b''.join(lines[3:20]), b''.join(lines[20:])]
  ids = np.concatenate([vocabulary.encode(piece) for piece in pieces])
  assert ids.tolist() == vocabulary.encode(text).tolist()


def test_penn_treebank_has_its_published_sizes(data_dir):
  texts = [
    (data_dir / 'ptb' / f'ptb.{split}.txt').read_bytes() for split in SPLITS
  ]
  vocabulary = WordVocabulary.of(texts, lower_case=True)
  assert vocabulary.size == 10_000
  sizes = [len(vocabulary.encode(text)) for text in texts]
  assert sizes == [929_589, 73_760, 82_430]


def test_wikitext_has_a_token_a_word_and_one_a_line(data_dir):
  for path in sorted((data_dir / 'wikitext2_valid_test').glob('*')):
    text = path.read_bytes()
    vocabulary = WordVocabulary.of([text])
    n_tokens = len(text.decode().split()) + text.count(b'\n')
    assert len(vocabulary.encode(text)) == n_tokens


def test_enwik8_is_read_without_line_ends(data_dir):
  raw = (data_dir / 'enwik8_head' / 'enwik8_head').read_bytes()
  vocabulary = SymbolVocabulary.of([raw], 'byte', documents=False)
  ids = vocabulary.encode(raw)
  assert len(ids) == len(raw) - raw.count(b'\n')
  assert vocabulary.size == len(set(raw)) - 1
  counts = np.bincount(ids)
  assert (np.diff(counts) <= 0).all()
