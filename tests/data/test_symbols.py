"""Bytes and characters in the order of their frequency."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import vocabulary_from_json
from txl_jax.errors import InputError


def test_order_is_by_count_and_then_by_place():
  vocabulary = SymbolVocabulary.of([b'abcb', b'dcb'], 'byte', documents=True)
  assert bytes(vocabulary.symbols.astype(np.uint8)) == b'bcad'
  assert vocabulary.size == 5
  assert vocabulary.boundary == 4
  assert vocabulary.encode(b'abd').tolist() == [2, 0, 3]


@given(st.text(min_size=1))
def test_characters_survive(text):
  text = text.encode(errors='ignore').decode()
  vocabulary = SymbolVocabulary.of([text.encode()], 'character', documents=True)
  ids = vocabulary.encode(text)
  assert len(ids) == len(text)
  assert vocabulary.decode(ids) == text
  assert vocabulary.characters(np.append(ids, vocabulary.boundary)) == len(text)
  assert vocabulary.decode([vocabulary.boundary, *ids]) == text
  again = vocabulary_from_json(vocabulary.to_json())
  assert again.encode(text).tolist() == ids.tolist()


@given(st.binary())
def test_without_documents_line_ends_are_left_out(raw):
  everything = bytes(range(256))
  vocabulary = SymbolVocabulary.of([everything], 'byte', documents=False)
  ids = vocabulary.encode(raw)
  without = bytes(vocabulary.symbols[ids].astype(np.uint8))
  assert without == raw.replace(b'\n', b'')


def test_an_unknown_symbol_is_named():
  vocabulary = SymbolVocabulary.of([b'ab'], 'character', documents=True)
  with pytest.raises(InputError, match="character 'é' is not among the 2"):
    vocabulary.encode('abé')


def test_prompts_begin_with_a_boundary_or_a_blank():
  own = SymbolVocabulary.of([b'a b'], 'character', documents=True)
  assert own.encode_prompt('').tolist() == [3]
  stream = SymbolVocabulary.of([b'a b'], 'byte', documents=False)
  assert stream.decode(stream.encode_prompt('ab')) == ' ab'
