"""Vocabularies of words, in the order of the paper's code."""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from txl_jax.data.vocabulary import id_type, most_common
from txl_jax.errors import InputError

END, UNKNOWN, DOCUMENT = '<eos>', '<unk>', '<document>'
SENTENCE, UNKNOWN_OF_LM1B = '<S>', '<UNK>'
PIECE = 2**18  # characters
# What Python takes for white space: single bytes, and other characters.
WHITE_BYTES = bytes([*range(0x09, 0x0E), *range(0x1C, 0x21)])
RARE_WHITE = [
  *map(chr, (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))),
  *map(chr, (0x2028, 0x2029, 0x202F, 0x205F, 0x3000)),
]


class WordVocabulary:
  """Words between white space; a token ends each line.

  Attributes:
    words: by id: tokens that stand for no text, then words by frequency.
    lower_case: whether text is put into lower case.
    unknown: the id of all words that are not in the vocabulary; None = such a
      word is an error.
    boundary: the id that begins each document, if the text has documents.
    mark: the id on both sides of each line in One Billion Word.
  """

  measure = 'ppl'

  def __init__(self, words: Iterable[str], lower_case: bool = False):
    self.words = list(words)
    self.lower_case = lower_case
    self.size = len(self.words)
    self._ids = {word: i for i, word in enumerate(self.words)}
    self._values = pa.array(self.words, pa.large_string())
    if len(self._ids) != self.size:
      raise ValueError('a word stands in it twice')
    unknown = self._ids.get(UNKNOWN_OF_LM1B, self._ids.get(UNKNOWN))
    self.unknown = unknown
    self.boundary = self._ids.get(DOCUMENT)
    self.mark = self._ids.get(SENTENCE)
    sentences = self.mark is not None
    # In One Billion Word a token stands on both sides of each line.
    self._end = SENTENCE if sentences else END
    self._line = f' {SENTENCE} ' if sentences else ''
    silent = {self._ids.get(w) for w in (END, DOCUMENT, SENTENCE)}
    # A word and the blank after it; a line's end is one character.
    self._lengths = np.array(
      [i in silent or len(word) + 1 for i, word in enumerate(self.words)]
    )
    self._lengths[[] if self.boundary is None else self.boundary] = 0

  @classmethod
  def of(
    cls,
    texts: Iterable[bytes],
    *,
    lower_case: bool = False,
    documents: bool = False,
    min_count: int = 1,
    max_size: int | None = None,
    unknown: bool = False,
  ) -> 'WordVocabulary':
    """The vocabulary of all words in the texts.

    Args:
      texts: whole lines each.
      lower_case: whether text is put into lower case.
      documents: whether a token begins each document.
      min_count: words that are rarer are left out.
      max_size: so many tokens at most, the most frequent.
      unknown: whether there must be a token for words that are left out.
    """
    counts: collections.Counter = collections.Counter()
    for text in texts:
      counts.update(_text(text, lower_case).split())
    special = [END, *([DOCUMENT] if documents else [])]
    if unknown and UNKNOWN not in counts:
      special.append(UNKNOWN)
    for token in special:
      counts.pop(token, None)
    words = [w for w in most_common(counts) if counts[w] >= min_count]
    if unknown and UNKNOWN not in special and UNKNOWN not in words:
      special.append(UNKNOWN)
    room = None if max_size is None else max_size - len(special)
    return cls([*special, *words[:room]], lower_case)

  @classmethod
  def from_file(cls, path: pathlib.Path) -> 'WordVocabulary':
    """The first column of a file, in its order, as for One Billion Word.

    Raises:
      InputError: naming the line that has no word or one that stood before.
    """
    words: dict[str, int] = {}
    lines = path.read_bytes().decode().removesuffix('\n').split('\n')
    for number, line in enumerate(lines, 1):
      word = (line.split() or [''])[0]
      if not word or word in words:
        problem = f'{word!r} again' if word else 'nothing'
        raise InputError(
          f'{path}, line {number}: expected a word, found {problem}'
        )
      words[word] = number
    return cls(words)

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of whole lines.

    Raises:
      InputError: for a word that is not in the vocabulary if it has no token
        for unknown words.
    """
    raw = text.encode() if isinstance(text, str) else text
    lines = _text(raw, self.lower_case)
    if lines.endswith('\n'):
      lines = lines[:-1]
    elif not lines:
      return np.zeros(0, id_type(self.size))
    end = f' {self._end} {self._line}'
    return self._lookup(
      f'{self._line}{lines.replace(chr(10), end)} {self._end}'
    )

  def encode_prompt(self, text: str) -> np.ndarray:
    """The ids of a text after a line's end; nothing ends its last line."""
    lines = _text(text.encode(), self.lower_case)
    lines = lines.replace('\n', f' {self._end} {self._line}')
    begin = self._end if self.boundary is None else DOCUMENT
    return self._lookup(f'{begin} {lines}')

  def _lookup(self, text: str) -> np.ndarray:
    kind = id_type(self.size)
    if len(text) < 8 * self.size:
      # Arrow would take longer to learn the words than to find these.
      words = text.split()
      ids = [self._ids.get(word, self.unknown) for word in words]
      if None in ids:
        raise self._stranger(words[ids.index(None)])
      return np.array(ids, kind)
    # Arrow finds and looks up words without a Python object for each.
    words = pa.chunked_array(_split(piece) for piece in _pieces(text))
    found = pc.index_in(words, value_set=self._values)
    if found.null_count and self.unknown is None:
      raise self._stranger(words[pc.index(pc.is_null(found), True).as_py()])
    return found.fill_null(self.unknown or 0).to_numpy().astype(kind)

  def _stranger(self, word: str | pa.Scalar) -> InputError:
    return InputError(
      f'the word {str(word)!r} is not in the vocabulary of {self.size:,} '
      'words, which has none for unknown words'
    )

  def decode(self, ids: Any) -> str:
    """The text of ids: words with blanks between; boundaries vanish."""
    words = [self.words[i] for i in np.asarray(ids).tolist()]
    shown = [
      '\n' if w in (END, SENTENCE) else w for w in words if w != DOCUMENT
    ]
    return re.sub(' ?\n ?', '\n', ' '.join(shown))

  def characters(self, ids: np.ndarray) -> int:
    """How many characters the ids stand for, a blank after each word."""
    return int(self._lengths[ids].sum())

  def to_json(self) -> str:
    """The form `vocabulary_from_json` reads."""
    values = {'kind': 'words', 'lower_case': self.lower_case}
    return json.dumps({**values, 'words': self.words})

  @classmethod
  def from_json(cls, values: dict) -> 'WordVocabulary':
    """The inverse of `to_json`."""
    return cls(values['words'], values['lower_case'])


def _text(raw: bytes, lower_case: bool) -> str:
  """Text with universal newlines, as Python reads files."""
  text = raw.decode().replace('\r\n', '\n').replace('\r', '\n')
  return text.lower() if lower_case else text


def _pieces(text: str) -> Iterator[str]:
  """Cuts a text at blanks into pieces that stay in a processor's cache."""
  begin = 0
  while begin < len(text):
    end = text.find(' ', begin + PIECE)
    end = len(text) if end < 0 else end
    yield text[begin:end]
    begin = end


def _split(text: str) -> pa.Array:
  """The words of a text, as `str.split` finds them."""
  for white in RARE_WHITE:
    if white in text:
      text = text.replace(white, ' ')
  raw = text.encode()
  byte = np.frombuffer(raw, np.uint8)
  # Below 9 the unsigned differences are large, too.
  white = np.ones(len(raw) + 2, np.bool_)
  white[1:-1] = (byte - 0x09 < 5) | (byte - 0x1C < 5)
  # Where words begin and end, in turn.
  edges = np.flatnonzero(white[1:] != white[:-1])
  offsets = np.append(0, np.cumsum(edges[1::2] - edges[::2]))
  letters = raw.translate(None, delete=WHITE_BYTES)
  return pa.LargeStringArray.from_buffers(
    len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(letters)
  )
