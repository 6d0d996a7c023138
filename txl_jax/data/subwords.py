"""Vocabularies of subwords: of the tokenizers library or of sentencepiece."""

import base64
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from txl_jax.data.subword_libraries import (
  BATCH,
  OPENERS,
  TRAINERS,
  cut_pieces,
)
from txl_jax.data.vocabulary import id_type
from txl_jax.errors import InputError

Library = Literal['tokenizers', 'sentencepiece']


class SubwordVocabulary:
  """Subwords that a library finds, and a boundary that begins each document.

  Text never becomes the boundary, nor any other special token of the library,
  even if it contains the name of one.

  Attributes:
    library: finds the subwords.
    size: ids are 0 to size - 1.
    boundary: the id that begins each document.
  """

  mark = None
  measure = 'bpc'

  def __init__(self, library: Library, model: Any):
    """Reads what the library wrote.

    Args:
      library: finds the subwords.
      model: the values of a `tokenizer.json`, or the bytes of a `*.model`.

    Raises:
      InputError: if the library cannot read the model, or is not installed.
    """
    self.library = library
    self._model = OPENERS[library](model)
    own = self._model.boundary
    self.boundary = self._model.size if own is None else own
    self.size = self._model.size + (own is None)

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, without a boundary, as `id_type(size)`.

    Raises:
      InputError: naming the offset of what is not text.
    """
    return next(self._encoded([_text(text, 'the text')]))

  def encode_prompt(self, text: str) -> np.ndarray:
    """The ids of a text, after a boundary."""
    ids = self.encode(text)
    return np.append(ids.dtype.type(self.boundary), ids)

  def encode_documents(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
    """The ids of each document as by `encode`, many documents at once.

    Raises:
      InputError: naming the document, from 1, and the offset of what is not
        text.
    """
    return self._encoded(_decoded(texts))

  def _encoded(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
    pieces, parts = cut_pieces(texts, self._model.divisible), []
    while batch := list(itertools.islice(pieces, BATCH)):
      encoded = self._model.encode([piece for piece, _ in batch])
      for ids, (_, is_last) in zip(encoded, batch):
        parts.append(np.array(ids, id_type(self.size)))
        if is_last:
          yield np.concatenate(parts)
          parts = []

  def decode(self, ids: Any) -> str:
    """The text of ids; boundaries vanish, stray bytes become U+FFFD."""
    ids = np.asarray(ids)
    shown = (ids != self.boundary) & (ids < self._model.size)
    return self._model.decode(ids[shown].tolist())

  def characters(self, ids: np.ndarray) -> int:
    """How many characters the ids stand for; boundaries stand for none."""
    return int(self._lengths[np.asarray(ids, np.int64)].sum())

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    lengths = np.append(self._model.lengths(), 0)
    lengths[self.boundary] = 0
    return lengths

  def to_json(self) -> str:
    """The form `vocabulary_from_json` reads; it needs no other file."""
    values = {'kind': 'subwords', 'library': self.library}
    return json.dumps({**values, 'model': self._model.saved})

  @classmethod
  def from_json(cls, values: dict) -> 'SubwordVocabulary':
    """The inverse of `to_json`."""
    library, model = values['library'], values['model']
    binary = library == 'sentencepiece'
    return cls(library, base64.b64decode(model) if binary else model)


def train_subwords(
  documents: Iterable[bytes], size: int, library: Library = 'tokenizers'
) -> SubwordVocabulary:
  """Finds the subwords of a text by byte pair encoding; every text has ids.

  Args:
    documents: the text.
    size: how many ids there are, with bytes and boundary; fewer if the text is
      too small for so many.
    library: finds the subwords.

  Raises:
    InputError: for a size that is too small, a document that is not UTF-8, or
      a library that is unknown or not installed.
  """
  if library not in TRAINERS:
    known = ' or '.join(TRAINERS)
    raise InputError(f'the library must be {known}, found {library!r}')
  # The bytes and the boundary; sentencepiece needs one for what is unknown.
  least = 257 + (library == 'sentencepiece')
  if size < least:
    raise InputError(
      f'subwords of {library} need at least {least} ids, found {size}'
    )
  return SubwordVocabulary(
    library, TRAINERS[library](_decoded(documents), size)
  )


def load_subwords(path: str) -> SubwordVocabulary:
  """Reads a `tokenizer.json`, or a `*.model` of sentencepiece.

  The boundary is the token that ends a text there, or one more id.

  Raises:
    InputError: naming the file, if it is not what its suffix says.
  """
  try:
    with open(path, 'rb') as file:
      raw = file.read()
    if str(path).endswith('.model'):
      return SubwordVocabulary('sentencepiece', raw)
    return SubwordVocabulary('tokenizers', json.loads(raw))
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror}') from error
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'{path}: expected JSON, or a name that ends in .model, found {error}'
    ) from error


def _decoded(documents: Iterable[str | bytes]) -> Iterator[str]:
  return (_text(d, f'document {n:,}') for n, d in enumerate(documents, 1))


def _text(text: str | bytes, name: str) -> str:
  try:
    raw = text.encode() if isinstance(text, str) else text
    return raw.decode()
  except UnicodeError as error:
    found = error.object[error.start : error.start + 1]
    unit = 'character' if isinstance(text, str) else 'byte'
    raise InputError(
      f'{name}: expected UTF-8, found {found!r} at {unit} offset {error.start}'
    ) from error
