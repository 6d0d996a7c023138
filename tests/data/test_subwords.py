"""Text to subwords and back, with both libraries."""

import base64
import functools
import json
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from txl_jax.data import subword_libraries, subwords
from txl_jax.data.subword_libraries import DOCUMENT
from txl_jax.data.subwords import (
  SubwordVocabulary,
  load_subwords,
  train_subwords,
)
from txl_jax.data.vocabulary import vocabulary_from_json
from txl_jax.errors import InputError

LIBRARIES = ['tokenizers', 'sentencepiece']
# What a library might take for something else than text.
MARKS = [DOCUMENT, '<unk>', '</s>', '<0x41>', '\u2581', '\u2585', '\u0120', ' ']
WORDS = 'the house of Zürich and 東京 on the hill were here before, there'
TEXT = ''.join(f'{WORDS} {DOCUMENT} <0x41>\n\t{n} {n * n}\n' for n in range(99))
texts = st.one_of(
  st.text(st.characters(exclude_categories=['Cs'])),
  st.lists(st.sampled_from([*MARKS, *WORDS.split(' '), '\n', '\0'])).map(
    ''.join
  ),
)


@functools.cache
def trained(library: str) -> SubwordVocabulary:
  return train_subwords([TEXT.encode()] * 2, 400, library)


def write_tokenizer(path, model=None, **values) -> str:
  """A tokenizer.json of the real library, with some values changed."""
  saved = json.loads(trained('tokenizers').to_json())['model']
  saved['model'] |= model or {}
  path = path / 'tokenizer.json'
  path.write_text(json.dumps(saved | values))
  return str(path)


def added(content: str, i: int, special: bool = True) -> dict:
  token = {'id': i, 'content': content, 'special': special}
  flags = ['single_word', 'lstrip', 'rstrip', 'normalized']
  return token | dict.fromkeys(flags, False)


@pytest.mark.parametrize('library', LIBRARIES)
@settings(deadline=None, derandomize=True)
@example(f'{DOCUMENT} {DOCUMENT}\u2581\u2581a \u2581')
@example('')
@given(text=texts)
def test_every_text_comes_back_also_after_json(library, text):
  vocabulary = trained(library)
  ids = vocabulary.encode(text)
  assert ids.dtype == np.uint16
  assert vocabulary.decode(ids) == text
  assert vocabulary.boundary not in ids
  assert vocabulary.characters(ids) == len(text)
  assert (restored(library).encode(text) == ids).all()
  prompt = vocabulary.encode_prompt(text)
  assert prompt.tolist() == [vocabulary.boundary, *ids]
  assert vocabulary.decode(prompt) == text


@pytest.mark.parametrize('library', LIBRARIES)
def test_sizes(library):
  vocabulary = trained(library)
  assert vocabulary.size == 400
  assert len(vocabulary.encode(TEXT)) < len(TEXT) / 2
  # As many ids as such a small text gives.
  small = train_subwords([b'aaaa aaaa'], 5000, library)
  assert 257 < small.size < 300
  assert small.decode(small.encode(TEXT)) == TEXT


@pytest.mark.parametrize('library', LIBRARIES)
def test_training_again_and_json_give_the_same(library):
  again = train_subwords([TEXT.encode()] * 2, 400, library)
  text = trained(library).to_json()
  assert again.to_json() == restored(library).to_json() == text
  assert json.loads(text)['kind'] == 'subwords'
  assert restored(library).boundary == again.boundary


@functools.cache
def restored(library: str) -> SubwordVocabulary:
  return vocabulary_from_json(trained(library).to_json())


@pytest.mark.parametrize('library', LIBRARIES)
def test_many_documents_at_once(library, monkeypatch):
  vocabulary = trained(library)
  monkeypatch.setattr(subwords, 'BATCH', 3)
  documents = [b'', TEXT.encode(), b' a', b'', DOCUMENT.encode(), b'', b'b']
  found = list(vocabulary.encode_documents(iter(documents)))
  assert [vocabulary.decode(ids).encode() for ids in found] == documents
  for ids, document in zip(found, documents):
    assert (ids == vocabulary.encode(document)).all()


@pytest.mark.parametrize('library', LIBRARIES)
@settings(deadline=None, derandomize=True)
@given(words=st.lists(st.sampled_from(['a', ' ', '\n', "'s", 'é', *MARKS])))
def test_long_text_is_cut_without_another_result(library, words):
  vocabulary, text = trained(library), ''.join(words)
  whole = vocabulary.encode(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(subword_libraries, 'PIECE', 1)
    assert (vocabulary.encode(text) == whole).all()


@pytest.mark.parametrize('library', LIBRARIES)
def test_boundaries_and_ids_beyond_the_last_vanish(library):
  vocabulary = trained(library)
  first, second = vocabulary.encode('🐉')[:2], vocabulary.encode('🐉')[2:]
  boundary = np.array([vocabulary.boundary], np.uint16)
  assert vocabulary.decode(np.concatenate([first, boundary, second])) == '🐉'
  assert '\ufffd' in vocabulary.decode(first)
  assert vocabulary.decode([*boundary, 60000]) == ''
  assert vocabulary.decode([]) == ''


@pytest.mark.parametrize('library', LIBRARIES)
def test_what_is_not_text_is_named(library):
  vocabulary = trained(library)
  with pytest.raises(
    InputError, match=r"the text: .*b'\\xff' at byte offset 3"
  ):
    vocabulary.encode(b'a\xc3\xa9\xff')
  with pytest.raises(InputError, match=r"'\\ud800' at character offset 2"):
    vocabulary.encode('aé\ud800')
  with pytest.raises(InputError, match='document 2: .*byte offset 1'):
    list(vocabulary.encode_documents([b'a', b'a\xc3', b'a']))
  with pytest.raises(InputError, match='document 1: .*byte offset 0'):
    train_subwords([b'\x80'], 300, library)


def test_impossible_requests():
  for library, least in zip(LIBRARIES, (257, 258)):
    with pytest.raises(InputError, match=f'at least {least} ids, found 200'):
      train_subwords([b'a'], 200, library)
  with pytest.raises(InputError, match="or sentencepiece, found 'words'"):
    train_subwords([b'a'], 300, 'words')
  with pytest.raises(InputError, match='cannot find 300 subwords'):
    train_subwords([], 300, 'sentencepiece')
  assert train_subwords([], 300).size == 257


@pytest.mark.parametrize('library', LIBRARIES)
def test_a_library_that_is_missing(library, monkeypatch):
  text = trained(library).to_json()
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(InputError, match=f'pip install {library}'):
    train_subwords([b'a'], 300, library)
  with pytest.raises(InputError, match=f'pip install {library}'):
    vocabulary_from_json(text)


def test_a_tokenizers_file(tmp_path):
  # The settings of other uses: cut to 2 ids, chance.
  truncation = {'max_length': 2, 'strategy': 'LongestFirst', 'stride': 0}
  truncation['direction'] = 'Right'
  path = write_tokenizer(tmp_path, {'dropout': 0.9}, truncation=truncation)
  vocabulary = load_subwords(path)
  wanted = trained('tokenizers')
  assert vocabulary.boundary == wanted.boundary
  assert (vocabulary.encode(TEXT) == wanted.encode(TEXT)).all()


@pytest.mark.parametrize(
  'names, boundary, size',
  [
    (['<pad>', '</s>', '<|endoftext|>'], 402, 403),
    (['<s>', '<eos>'], 401, 402),
    (['[CLS]', '[SEP]', '<s>'], 401, 403),
    ([], 400, 401),  # one more
  ],
)
def test_the_boundary_of_a_tokenizers_file(tmp_path, names, boundary, size):
  # Not special in the file: as a boundary it is.
  tokens = [added(name, 400 + n, n == 0) for n, name in enumerate(names)]
  vocabulary = load_subwords(write_tokenizer(tmp_path, added_tokens=tokens))
  assert (vocabulary.boundary, vocabulary.size) == (boundary, size)
  text = f'a{"".join(names)} {" ".join(names)}'
  for one in (vocabulary, vocabulary_from_json(vocabulary.to_json())):
    ids = one.encode(text)
    assert boundary not in ids
    assert one.decode(ids) == text
    assert one.characters(ids) == len(text)


def test_a_model_with_the_boundary_among_its_words(tmp_path):
  """As those that sentencepiece's unigrams were made into."""
  signs = [[sign, -3.0] for sign in '\u2581</s>a']
  unigrams = [['?', -9.0], ['</s>', 0.0], ['a</', -1.0], *signs]
  blanks = {'type': 'Metaspace', 'replacement': '\u2581', 'split': False}
  blanks |= {'prepend_scheme': 'never'}
  model = {'type': 'Unigram', 'unk_id': 0, 'vocab': unigrams}
  values = {'pre_tokenizer': blanks, 'decoder': blanks, 'model': model}
  values |= {'normalizer': {'type': 'NFKC'}, 'added_tokens': [added('</s>', 1)]}
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(values))
  vocabulary = load_subwords(str(path))
  assert (vocabulary.boundary, vocabulary.size) == (1, 9)
  for text in ('</s>', 'a </s></s>a</s> a', ' <／s>'):
    ids = vocabulary.encode(text)
    assert 1 not in ids
    assert vocabulary.decode(ids) == text.replace('／', '/')
    assert vocabulary.characters(ids) == len(text)


def test_a_boundary_of_one_character_cannot_be_text(tmp_path, monkeypatch):
  monkeypatch.setattr(subword_libraries, 'BOUNDARIES', ('a',))
  [i] = trained('tokenizers').encode('a').tolist()
  path = write_tokenizer(tmp_path, added_tokens=[added('a', i)])
  with pytest.raises(InputError, match="takes for its boundary 'a'"):
    load_subwords(path).encode('q a q')


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_a_sentencepiece_file(tmp_path, kind):
  library = pytest.importorskip('sentencepiece')
  # Its own defaults: a blank before each text, NFKC, no bytes.
  library.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXT.replace(DOCUMENT, '').split('\n')),
    model_prefix=str(tmp_path / 'words'),
    model_type=kind,
    vocab_size=100,
    hard_vocab_limit=False,
    user_defined_symbols=['<|endoftext|>'],
    minloglevel=2,
  )
  path = str(tmp_path / 'words.model')
  vocabulary = load_subwords(path)
  processor = library.SentencePieceProcessor(model_file=path)
  # Text becomes <|endoftext|> here, so that it is no boundary.
  assert vocabulary.boundary == processor.eos_id()
  assert vocabulary.size == processor.get_piece_size()
  assert vocabulary.encode(WORDS).tolist() == processor.encode(WORDS)
  assert vocabulary.decode(vocabulary.encode(WORDS)) == WORDS
  assert vocabulary.boundary not in vocabulary.encode('</s> </s>a')
  # The blank before the text counts.
  assert vocabulary.characters(vocabulary.encode('the hill')) == 9


def test_the_files_of_what_is_trained_here(tmp_path):
  for library, name in zip(LIBRARIES, ['tokenizer.json', 'own.model']):
    vocabulary, path = trained(library), tmp_path / name
    saved = json.loads(vocabulary.to_json())['model']
    of_json = library == 'tokenizers'
    path.write_bytes(
      json.dumps(saved).encode() if of_json else base64.b64decode(saved)
    )
    again = load_subwords(str(path))
    assert again.to_json() == vocabulary.to_json()
    assert (again.encode(TEXT) == vocabulary.encode(TEXT)).all()


@pytest.mark.parametrize(
  'name, raw, found',
  [
    ('tokenizer.json', b'{', 'expected JSON'),
    ('tokenizer.json', b'[1]', 'expected the JSON of a tokenizer'),
    ('tokenizer.json', b'{}', 'expected the JSON of a tokenizer'),
    ('a.model', b'', 'of sentencepiece, found 0 other bytes'),
    ('a.model', b'junk', 'of sentencepiece, found 4 other bytes'),
  ],
)
def test_files_of_another_kind(tmp_path, name, raw, found):
  path = tmp_path / name
  path.write_bytes(raw)
  with pytest.raises(InputError, match=f'{name}: .*{found}') as caught:
    load_subwords(str(path))
  assert '\n' not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
  with pytest.raises(InputError, match='cannot read .*none.*: No such file'):
    load_subwords(str(tmp_path / 'none.model'))


@pytest.mark.parametrize('change', [{'model': 'ab='}, {'library': 'words'}])
def test_damaged_json_is_named(change):
  values = json.loads(trained('sentencepiece').to_json())
  with pytest.raises(InputError):
    vocabulary_from_json(json.dumps(values | change))
