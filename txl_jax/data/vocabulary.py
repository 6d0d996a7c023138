"""Vocabularies: between text and token ids."""

import json
from typing import Any, ClassVar

import numpy as np

from txl_jax.errors import InputError


class ByteVocabulary:
  """UTF-8 bytes, ids 0 to 255, and a boundary that begins each document."""

  size: ClassVar[int] = 257
  boundary: ClassVar[int] = 256

  def encode(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, uint16, without a boundary."""
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, np.uint8).astype(np.uint16)

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


def vocabulary_from_json(text: str) -> ByteVocabulary:
  """The vocabulary that wrote the text.

  Raises:
    InputError: if no vocabulary did.
  """
  try:
    kind = json.loads(text)['kind']
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      'the vocabulary is not a JSON object with a kind'
    ) from error
  if kind != 'bytes':
    raise InputError(f"the vocabulary's kind must be 'bytes', found {kind!r}")
  return ByteVocabulary()
