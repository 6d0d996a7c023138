"""From anyone's text or the paper's corpora to ids, once."""

import pathlib

import numpy as np
import pytest

from txl_jax.config import DataConfig
from txl_jax.data import prepare
from txl_jax.data.corpora import SPLITS, load_corpus
from txl_jax.errors import InputError

WORDS = 'ein zwei drei vier fünf sechs sieben acht neun zehn'.split()


@pytest.fixture
def text(tmp_path) -> pathlib.Path:
  lines = [
    ' '.join(WORDS[: 1 + (7 * n) % 10]) + ('\n\n' if n % 9 == 0 else '\n')
    for n in range(400)
  ]
  path = tmp_path / 'numbers.txt'
  path.write_text(''.join(lines))
  return path


def _config(text, tmp_path, **changes) -> DataConfig:
  cache = str(tmp_path / 'cache')
  return DataConfig(path=str(text), cache_dir=cache, **changes)


def _whole(corpus) -> str:
  return ''.join(
    corpus.vocabulary.decode(np.asarray(corpus.tokens[split]))
    for split in SPLITS
  )


@pytest.mark.parametrize('tokenizer', ['bytes', 'characters', 'subwords'])
def test_no_character_is_lost(text, tmp_path, tokenizer):
  config = _config(text, tmp_path, tokenizer=tokenizer, max_vocabulary=300)
  corpus = load_corpus(config, lambda line: None)
  assert _whole(corpus) == text.read_text()
  for split in SPLITS:
    ids = corpus.tokens[split]
    assert ids[0] == corpus.vocabulary.boundary
    characters = corpus.vocabulary.characters(ids)
    expected = corpus.vocabulary.decode(np.asarray(ids))
    if tokenizer == 'bytes':
      expected = expected.encode()
    assert characters == len(expected)


def test_words_and_the_parts_of_the_text(text, tmp_path):
  config = _config(text, tmp_path, tokenizer='words', test_fraction=0.25)
  corpus = load_corpus(config, lambda line: None)
  vocabulary = corpus.vocabulary
  assert vocabulary.words[:3] == ['<eos>', '<document>', '<unk>']
  assert set(vocabulary.words[3:]) == set(WORDS)
  assert vocabulary.words[3] == 'ein'
  size = len(text.read_bytes())
  test = vocabulary.decode(np.asarray(corpus.tokens['test']))
  assert len(test.encode()) == pytest.approx(size / 4, rel=0.02)


def test_run_again_it_is_read_from_the_cache(text, tmp_path, monkeypatch):
  config = _config(text, tmp_path, tokenizer='words')
  first = load_corpus(config, lambda line: None)
  monkeypatch.setattr(prepare, '_read', None)
  again = load_corpus(config, lambda line: None)
  assert again.fingerprint() == first.fingerprint()
  assert again.vocabulary.words == first.vocabulary.words


@pytest.mark.parametrize(
  'changes',
  [
    dict(tokenizer='characters'),
    dict(tokenizer='words', min_count=50),
    dict(tokenizer='words', lower_case=True),
    dict(tokenizer='words', test_fraction=0.2),
  ],
)
def test_another_option_is_another_cache(text, tmp_path, changes):
  config = _config(text, tmp_path, tokenizer='words')
  load_corpus(config, lambda line: None)
  load_corpus(_config(text, tmp_path, **changes), lambda line: None)
  assert len(list((tmp_path / 'cache').glob('numbers-*'))) == 2


def test_a_changed_source_is_another_cache(text, tmp_path):
  config = _config(text, tmp_path, tokenizer='words')
  before = load_corpus(config, lambda line: None)
  text.write_text(text.read_text() + 'elf elf elf\n' * 9)
  after = load_corpus(config, lambda line: None)
  assert after.fingerprint() != before.fingerprint()
  assert len(list((tmp_path / 'cache').glob('numbers-*'))) == 2


def test_an_interruption_leaves_no_cache(text, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  config = _config(text, tmp_path, tokenizer='words')
  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_encode', interrupted)
    with pytest.raises(KeyboardInterrupt):
      load_corpus(config, lambda line: None)
  assert not list((tmp_path / 'cache').glob('*'))
  assert load_corpus(config, lambda line: None).tokens['train'].size > 1000


@pytest.mark.parametrize(
  ('content', 'changes', 'message'),
  [
    (b'', {}, 'empty'),
    (b'good\nb\xffd\n' * 99, dict(tokenizer='words'), 'line 2'),
    (b'word\n' * 99, dict(tokenizer='subwords', tokenizer_path='no'), 'no'),
  ],
)
def test_bad_input_is_one_sentence(content, changes, message, tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    load_corpus(_config(path, tmp_path, **changes), lambda line: None)


def test_the_librarys_own_text_is_bytes():
  with pytest.raises(InputError, match="tokenizer must be 'bytes' for the lib"):
    load_corpus(DataConfig(tokenizer='words'))


def test_penn_treebank_from_files(data_dir, tmp_path):
  config = DataConfig(
    corpus='ptb', manual_dir=str(data_dir / 'ptb'), cache_dir=str(tmp_path)
  )
  said = []
  corpus = load_corpus(config, said.append)
  sizes = [len(corpus.tokens[split]) for split in SPLITS]
  assert sizes == [929_589, 73_760, 82_430]
  assert corpus.vocabulary.size == 10_000
  assert said
  # Neither the files nor what TFDS made of them are needed any more.
  again = DataConfig(corpus='ptb', cache_dir=str(tmp_path))
  assert load_corpus(again, said.append).fingerprint() == corpus.fingerprint()
