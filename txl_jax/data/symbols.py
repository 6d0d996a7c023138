"""Vocabularies of single symbols, bytes or characters, ordered by frequency."""

import collections
import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from txl_jax.data.vocabulary import id_type, most_common
from txl_jax.errors import InputError

NEWLINE, BLANK = 10, 32


class SymbolVocabulary:
  """Bytes or Unicode characters as tokens.

  Attributes:
    symbols: byte values or code points; their places are the ids.
    unit: what they are.
    documents: whether one more id begins each document. A vocabulary without
      it is that of the paper's code for enwik8 and text8, which reads lines
      and so leaves out their ends.
  """

  mark = None
  measure = 'bpc'

  def __init__(
    self,
    symbols: Iterable[int],
    unit: Literal['byte', 'character'],
    documents: bool,
  ):
    self.symbols = np.array(list(symbols), np.int64)
    self.unit = unit
    self.documents = documents
    n_symbols = len(self.symbols)
    self.size = n_symbols + documents
    self.boundary = n_symbols if documents else None
    # Ids by symbol: -1 for those that are not in the vocabulary.
    largest = 255 if unit == 'byte' else 0x10FFFF
    self._ids = np.full(largest + 1, -1, np.int64)
    self._ids[self.symbols] = np.arange(n_symbols)

  @classmethod
  def of(
    cls,
    texts: Iterable[bytes],
    unit: Literal['byte', 'character'],
    documents: bool,
  ) -> 'SymbolVocabulary':
    """The vocabulary of all symbols in the texts."""
    counts: collections.Counter = collections.Counter()
    for text in texts:
      symbols = _symbols(text, unit, documents)
      values, first, n = np.unique(
        symbols, return_index=True, return_counts=True
      )
      order = np.argsort(first)
      counts.update(dict(zip(values[order].tolist(), n[order].tolist())))
    return cls(most_common(counts), unit, documents)

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, without a boundary.

    Raises:
      InputError: for a symbol that is not in the vocabulary.
    """
    raw = text.encode() if isinstance(text, str) else text
    symbols = _symbols(raw, self.unit, self.documents)
    ids = self._ids[symbols]
    unknown = np.flatnonzero(ids < 0)
    if unknown.size:
      value = int(symbols[unknown[0]])
      shown = chr(value) if self.unit == 'character' else value
      raise InputError(
        f'{self.unit} {shown!r} is not among the {len(self.symbols)} of the '
        'vocabulary'
      )
    return ids.astype(id_type(self.size))

  def encode_prompt(self, text: str) -> np.ndarray:
    """The ids of a text, after a boundary, or a blank where there is none."""
    first = self._ids[BLANK] if self.boundary is None else self.boundary
    ids = self.encode(text)
    return np.append(ids.dtype.type(max(first, 0)), ids)

  def decode(self, ids: Any) -> str:
    """The text of ids; boundaries vanish, stray bytes become U+FFFD."""
    ids = np.asarray(ids, np.int64)
    symbols = self.symbols[ids[ids < len(self.symbols)]]
    if self.unit == 'byte':
      return symbols.astype(np.uint8).tobytes().decode(errors='replace')
    return ''.join(map(chr, symbols.tolist()))

  def characters(self, ids: np.ndarray) -> int:
    """How many ids are text."""
    return int((ids < len(self.symbols)).sum())

  def to_json(self) -> str:
    """The form `vocabulary_from_json` reads."""
    values = {'kind': 'symbols', 'unit': self.unit}
    values |= {'documents': self.documents, 'symbols': self.symbols.tolist()}
    return json.dumps(values)

  @classmethod
  def from_json(cls, values: dict) -> 'SymbolVocabulary':
    """The inverse of `to_json`."""
    return cls(values['symbols'], values['unit'], values['documents'])


def _symbols(text: bytes, unit: str, documents: bool) -> np.ndarray:
  if unit == 'byte':
    symbols = np.frombuffer(text, np.uint8)
  else:
    symbols = np.frombuffer(text.decode().encode('utf-32-le'), np.uint32)
  return symbols if documents else symbols[symbols != NEWLINE]
