"""Vocabularies: between text and token ids."""

import json
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from txl_jax.errors import InputError


class Vocabulary(Protocol):
  """What the rest of the library knows of a vocabulary.

  Attributes:
    size: ids are 0 to size - 1.
    boundary: the id that begins each document; None where the text is one
      stream without documents, as in the paper's corpora.
    mark: the id on both sides of each sentence, if the text is made of
      sentences without order, as One Billion Word is.
    measure: what losses are usually given as: bits per character or
      perplexity per token.
  """

  size: int
  boundary: int | None
  mark: int | None
  measure: Literal['bpc', 'ppl']

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, without boundary, as `id_type(size)`."""

  def encode_prompt(self, text: str) -> np.ndarray:
    """The ids of a text that begins a document and goes on; at least one."""

  def decode(self, ids: Any) -> str:
    """The text of ids."""

  def characters(self, ids: np.ndarray) -> int:
    """How many characters the ids stand for."""

  def to_json(self) -> str:
    """The form `vocabulary_from_json` reads."""


class ByteVocabulary:
  """UTF-8 bytes, ids 0 to 255, and a boundary that begins each document."""

  size: ClassVar[int] = 257
  boundary: ClassVar[int] = 256
  mark: ClassVar[None] = None
  measure: ClassVar[str] = 'bpc'

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, uint16, without a boundary."""
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, np.uint8).astype(np.uint16)

  def encode_prompt(self, text: str) -> np.ndarray:
    """The ids of a text, after a boundary."""
    return np.append(np.uint16(self.boundary), self.encode(text))

  def decode(self, ids: Any) -> str:
    """The text of ids; boundaries vanish, stray bytes become U+FFFD."""
    ids = np.asarray(ids)
    return bytes(ids[ids < 256].astype(np.uint8)).decode(errors='replace')

  def characters(self, ids: np.ndarray) -> int:
    """How many ids are text: what bits per character are divided by."""
    return int((ids != self.boundary).sum())

  def to_json(self) -> str:
    """The form `vocabulary_from_json` reads."""
    return json.dumps({'kind': 'bytes'})


def id_type(size: int) -> type:
  """The narrowest type that ids of a vocabulary of this size are kept in."""
  return np.uint16 if size <= 2**16 else np.uint32


def most_common(counts: dict[Any, int]) -> list[Any]:
  """Symbols by falling count; of equal ones the first seen comes first.

  The order of the paper's code, and of `collections.Counter.most_common`.
  """
  return sorted(counts, key=counts.__getitem__, reverse=True)


def vocabulary_from_json(text: str) -> Vocabulary:
  """The vocabulary that wrote the text.

  Raises:
    InputError: if no vocabulary did.
  """
  # Here, since each of these modules uses what is above.
  from txl_jax.data.subwords import SubwordVocabulary
  from txl_jax.data.symbols import SymbolVocabulary
  from txl_jax.data.words import WordVocabulary

  try:
    values = json.loads(text)
    kind = values['kind']
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      'the vocabulary is not a JSON object with a kind'
    ) from error
  if kind == 'bytes':
    return ByteVocabulary()
  kinds = {
    'symbols': SymbolVocabulary,
    'words': WordVocabulary,
    'subwords': SubwordVocabulary,
  }
  if kind not in kinds:
    known = ', '.join(['bytes', *kinds])
    raise InputError(
      f"the vocabulary's kind must be one of {known}, found {kind!r}"
    )
  try:
    return kinds[kind].from_json(values)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(
      f'the vocabulary of kind {kind!r} is incomplete: {error}'
    ) from error
