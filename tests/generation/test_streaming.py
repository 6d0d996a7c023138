"""Text in pieces is the text at once, and nothing is taken back."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.data.wikitext import from_wikitext
from txl_jax.data.words import WordVocabulary
from txl_jax.generation.streaming import (
  CONTEXT,
  MOST,
  TextStream,
  WikiTextStream,
)

BYTES = ByteVocabulary()
SYMBOLS = SymbolVocabulary(range(256), 'byte', documents=True)
WORDS = WordVocabulary(['<eos>', '<document>', 'a', 'bc', 'd', 'efg'])
UNICODE = 'naïve — “日本語” 🙂 a\n'


def _pieces(values, cuts):
  edges = [0, *sorted(cut % (len(values) + 1) for cut in cuts), len(values)]
  return [values[low:high] for low, high in zip(edges, edges[1:])]


def _streamed(vocabulary, before, ids, cuts) -> list[str]:
  stream = TextStream(vocabulary)
  stream.skip(before)
  return [*map(stream.push, _pieces(ids, cuts)), stream.finish()]


CUTS = st.lists(st.integers(0, 999), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=UNICODE, max_size=40), CUTS)
def test_no_character_is_broken(text, cuts):
  ids = BYTES.encode(text).tolist()
  shown = _streamed(BYTES, BYTES.encode_prompt('ö'), ids, cuts)
  assert ''.join(shown) == text
  assert not any('\ufffd' in piece for piece in shown)


@pytest.mark.parametrize('vocabulary', [BYTES, SYMBOLS, WORDS], ids=type)
@settings(max_examples=100, deadline=None)
@given(st.data(), CUTS)
def test_pieces_join_to_the_whole(vocabulary, data, cuts):
  ids = st.lists(st.integers(0, vocabulary.size - 1), max_size=60)
  before, ids = data.draw(ids), data.draw(ids)
  whole = vocabulary.decode([*before, *ids])
  shown = vocabulary.decode(before)
  if not whole.startswith(shown):
    return  # what was before ended within a character
  found = _streamed(vocabulary, before, ids, cuts)
  assert shown + ''.join(found) == whole


@pytest.mark.parametrize('unit', ['日本 🙂', '\udcff\udc80', 'x'])
def test_long_texts_need_no_more_memory(unit):
  raw = (unit * 2000).encode(errors='surrogateescape')
  ids = list(raw)
  stream = TextStream(BYTES)
  stream.skip([BYTES.boundary])
  found, kept = '', 0
  for i in range(0, len(ids), 7):
    found += stream.push(ids[i : i + 7])
    kept = max(kept, len(stream._ids))
    behind = len(BYTES.decode(ids[: i + 7])) - len(found)
    assert behind <= 3
  assert found + stream.finish() == raw.decode(errors='replace')
  assert CONTEXT < kept <= MOST + 7


TOKENS = (
  "\" ' a I s , . ( ) [ ] @-@ @,@ 1 20 – & $ US 's dogs : h <unk>".split()
)


@settings(max_examples=300, deadline=None)
@given(
  st.lists(st.sampled_from([*TOKENS, '\n']), max_size=40), CUTS, st.booleans()
)
@example(["'", 'a', *'bcdefg', "'", 'h'], [6, 8, 9, 12], True)
def test_wikitext_is_joined_as_it_would_be_at_once(words, cuts, blank):
  text = ' ' * blank + ' '.join(words).replace(' \n ', '\n')
  stream = WikiTextStream()
  found = ''.join(map(stream.push, _pieces(text, cuts))) + stream.finish()
  first = ' ' if text.startswith(' ') else ''
  assert found == first + from_wikitext(text.removeprefix(' '))


def test_wikitext_appears_while_its_line_goes_on():
  stream, shown = WikiTextStream(), []
  for word in 'The well @-@ known dog of 1 @,@ 000 towns , he said'.split():
    shown.append(stream.push(f' {word}'))
  assert ''.join(shown).startswith(' The well-known dog of 1,000')
  assert sum(map(bool, shown)) > 5
  assert np.all([len(piece) < 15 for piece in shown])
