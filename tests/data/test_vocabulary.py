"""Bytes to ids and back."""

import json

import numpy as np
import pytest

from txl_jax.data.vocabulary import ByteVocabulary, vocabulary_from_json
from txl_jax.errors import InputError

TEXTS = ['', 'a', 'plain text\n', 'Zürich, 東京, \U0001f409', '\0\r\n\t\x7f']


@pytest.mark.parametrize('text', TEXTS)
def test_text_comes_back(text):
  vocabulary = ByteVocabulary()
  ids = vocabulary.encode(text)
  assert ids.dtype == np.uint16
  assert len(ids) == len(text.encode())
  assert vocabulary.decode(ids) == text


def test_every_byte_is_its_own_id():
  raw = bytes(range(256))
  ids = ByteVocabulary().encode(raw)
  assert ids.tolist() == list(range(256))
  assert bytes(ids.astype(np.uint8)) == raw
  assert ByteVocabulary.size == 257
  assert ByteVocabulary.boundary == 256


@pytest.mark.parametrize('raw', [b'\xff', b'a\xc3', b'\xe6\x9d', b'\x80b'])
def test_invalid_bytes_are_kept_as_ids_and_shown_as_the_replacement(raw):
  vocabulary = ByteVocabulary()
  ids = vocabulary.encode(raw)
  assert bytes(ids.astype(np.uint8)) == raw
  text = vocabulary.decode(ids)
  assert '\ufffd' in text
  assert text.replace('\ufffd', '') == raw.decode(errors='ignore')


def test_boundaries_vanish_even_within_a_character():
  vocabulary = ByteVocabulary()
  first, second = vocabulary.encode('é')
  boundary = vocabulary.boundary
  assert vocabulary.decode([boundary, 104, boundary, 105]) == 'hi'
  assert vocabulary.decode([first, boundary, second]) == 'é'
  assert vocabulary.decode([boundary]) == ''
  assert vocabulary.decode([]) == ''


def test_decoding_takes_any_kind_of_array():
  vocabulary = ByteVocabulary()
  for dtype in (np.int32, np.int64, np.uint16):
    assert vocabulary.decode(np.array([104, 105], dtype)) == 'hi'


def test_characters_are_ids_without_boundaries():
  vocabulary = ByteVocabulary()
  assert vocabulary.characters(np.array([256, 1, 2, 256, 255])) == 3
  assert vocabulary.characters(np.array([256])) == 0
  assert type(vocabulary.characters(np.array([1]))) is int


def test_a_vocabulary_survives_json():
  again = vocabulary_from_json(ByteVocabulary().to_json())
  assert isinstance(again, ByteVocabulary)


@pytest.mark.parametrize('text', ['', 'x', '[]', '{}', '3', '"bytes"', 'null'])
def test_what_is_no_vocabulary_is_refused(text):
  with pytest.raises(InputError, match='not a JSON object with a kind'):
    vocabulary_from_json(text)


def test_an_unknown_kind_is_named():
  known = 'one of bytes, symbols, words, subwords'
  with pytest.raises(InputError, match=f"must be {known}, found 'letters'"):
    vocabulary_from_json(json.dumps({'kind': 'letters'}))
