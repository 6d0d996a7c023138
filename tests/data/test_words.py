"""Words of one's own text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txl_jax.data import words
from txl_jax.data.vocabulary import vocabulary_from_json
from txl_jax.data.words import WordVocabulary
from txl_jax.errors import InputError

TEXT = b'the cat saw the dog\n\nthe dog ran\n'
OWN = dict(documents=True, unknown=True)


def test_order_and_special_tokens():
  vocabulary = WordVocabulary.of([TEXT], **OWN)
  special = ['<eos>', '<document>', '<unk>']
  assert vocabulary.words == [*special, 'the', 'dog', 'cat', 'saw', 'ran']
  assert vocabulary.boundary == 1
  assert vocabulary.unknown == 2
  assert vocabulary.encode('the ran\n').tolist() == [3, 7, 0]
  assert vocabulary.encode('').tolist() == []
  assert vocabulary.encode('\n').tolist() == [0]


def test_rare_words_are_unknown():
  vocabulary = WordVocabulary.of([TEXT], min_count=2, **OWN)
  assert vocabulary.words[3:] == ['the', 'dog']
  assert vocabulary.encode('the cat\n').tolist() == [3, 2, 0]
  small = WordVocabulary.of([TEXT], max_size=4, **OWN)
  assert small.words[3:] == ['the']
  lower = WordVocabulary.of([b'The the THE a'], lower_case=True, **OWN)
  assert lower.words[3:] == ['the', 'a']
  assert lower.encode('A').tolist() == [4, 0]


def test_without_a_token_for_them_unknown_words_are_errors():
  vocabulary = WordVocabulary.of([TEXT])
  with pytest.raises(InputError, match="the word 'bird' is not in the vocab"):
    vocabulary.encode('the bird\n')


def test_an_unknown_token_in_the_text_is_used():
  vocabulary = WordVocabulary.of([b'a <unk> a\n'], unknown=True)
  assert vocabulary.words == ['<eos>', 'a', '<unk>']
  assert vocabulary.encode('b a\n').tolist() == [2, 1, 0]


def test_prompts_begin_a_document_and_go_on():
  vocabulary = WordVocabulary.of([TEXT], **OWN)
  assert vocabulary.encode_prompt('').tolist() == [1]
  assert vocabulary.encode_prompt('the cat').tolist() == [1, 3, 5]
  assert vocabulary.encode_prompt('the\ncat').tolist() == [1, 3, 0, 5]
  official = WordVocabulary.of([TEXT])
  assert official.encode_prompt('the').tolist() == [0, 1]


def test_characters_are_those_of_the_text():
  vocabulary = WordVocabulary.of([TEXT], **OWN)
  ids = np.append(vocabulary.boundary, vocabulary.encode(TEXT))
  # Words with the blank or line end after them, and a line's end of its own.
  assert vocabulary.characters(ids) == len(TEXT) + 2
  assert vocabulary.characters(ids[:1]) == 0


lines = st.lists(
  st.lists(st.sampled_from(['a', 'bb', 'é', '1,5', '<b>']), max_size=5),
  min_size=1,
  max_size=6,
).map(lambda rows: '\n'.join(' '.join(row) for row in rows) + '\n')


@given(lines)
def test_text_survives(text):
  vocabulary = WordVocabulary(['<eos>', 'a', 'bb', 'é', '1,5', '<b>'])
  assert vocabulary.decode(vocabulary.encode(text)) == text
  again = vocabulary_from_json(vocabulary.to_json())
  assert again.encode(text).tolist() == vocabulary.encode(text).tolist()


def test_a_vocabulary_file_is_checked_by_line(tmp_path):
  path = tmp_path / 'vocabulary.txt'
  path.write_text('<S> 5\nthe 4\nthe 3\n<UNK> 1\n')
  with pytest.raises(
    InputError, match="vocabulary.txt, line 3: .* 'the' again"
  ):
    WordVocabulary.from_file(path)
  path.write_text('<S> 5\n\nthe 3\n')
  with pytest.raises(
    InputError, match='line 2: expected a word, found nothing'
  ):
    WordVocabulary.from_file(path)


@pytest.mark.parametrize(
  'values',
  [
    {'kind': 'words', 'words': ['a', 'a'], 'lower_case': False},
    {'kind': 'words', 'words': ['a']},
    {'kind': 'letters'},
  ],
)
def test_a_broken_vocabulary_is_one_sentence(values):
  with pytest.raises(InputError, match='kind'):
    vocabulary_from_json(json.dumps(values))


@pytest.mark.parametrize('times', [1, 300])
@given(text=st.text())
def test_words_are_those_of_pythons_split(times, text):
  # Short texts and long ones are looked up in different ways.
  text = text.encode(errors='ignore').decode() * times
  vocabulary = WordVocabulary.of([text.encode()], unknown=True)
  lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
  if not lines[-1]:
    lines.pop()
  expected = []
  for line in lines:
    expected += [*line.split(), '<eos>']
  found = [vocabulary.words[i] for i in vocabulary.encode(text)]
  assert found == expected


@pytest.mark.parametrize('times', [1, 9000])
def test_unknown_words_and_pieces(times, monkeypatch):
  monkeypatch.setattr(words, 'PIECE', 1000)
  known = WordVocabulary.of([b'one two\n'], unknown=True)
  ids = known.encode('one three two\n' * times)
  read = [known.words[i] for i in ids]
  assert read == ['one', '<unk>', 'two', '<eos>'] * times
  closed = WordVocabulary.of([b'one two\n'])
  with pytest.raises(InputError, match="the word 'three' is not"):
    closed.encode('one two\n' * times + 'three')
