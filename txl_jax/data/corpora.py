"""Corpora: named splits of token ids, from text on this machine."""

import dataclasses
import hashlib
import pathlib
import sysconfig
from collections.abc import Callable

import numpy as np

from txl_jax.config import DataConfig
from txl_jax.data.sources import read_documents
from txl_jax.data.splits import SPLITS, split_documents
from txl_jax.data.vocabulary import ByteVocabulary, Vocabulary
from txl_jax.errors import InputError

Say = Callable[[str], None]
# Of the standard library: tests, and what does not belong to every Python.
SKIPPED_FOLDERS = frozenset(
  ['test', 'tests', 'idle_test', 'site-packages', 'dist-packages']
)
# One file in so many validates, and one tests.
FILES_PER_SPLIT = 32


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Token ids of the three splits.

  Attributes:
    name: what the text is, for people.
    tokens: split -> ids [length].
    vocabulary: made the ids.
  """

  name: str
  tokens: dict[str, np.ndarray]
  vocabulary: Vocabulary

  def fingerprint(self) -> str:
    """A checksum of all ids: equal corpora, equal fingerprints."""
    digest = hashlib.sha256()
    for split in SPLITS:
      digest.update(split.encode())
      digest.update(np.ascontiguousarray(self.tokens[split]))
    return digest.hexdigest()[:16]

  def summary(self) -> dict:
    """Name, fingerprint, and tokens and documents of each split."""
    boundary = self.vocabulary.boundary
    sizes = {
      split: {
        'tokens': len(ids),
        'documents': int((ids == boundary).sum()),
      }
      for split, ids in self.tokens.items()
    }
    return {'name': self.name, 'fingerprint': self.fingerprint(), **sizes}


def load_corpus(config: DataConfig, say: Say = print) -> Corpus:
  """Reads the corpus that the configuration names.

  Text as bytes is read anew each time, which takes no longer than finding it
  prepared; everything else is prepared once and mapped into memory.

  Args:
    config: where the text comes from.
    say: receives lines of progress.

  Raises:
    InputError: for a source that cannot be had or read.
  """
  if config.corpus or config.tfds_name or config.tokenizer != 'bytes':
    return _prepared(config, say)
  return _own_text(config) if config.path else _standard_library()


def _prepared(config: DataConfig, say: Say) -> Corpus:
  # Here, since TFDS and what it brings take a second to import.
  from txl_jax.data.prepare import prepared

  if not (config.corpus or config.tfds_name or config.path):
    raise InputError(
      "config.data.tokenizer must be 'bytes' for the library's own text, found "
      f'{config.tokenizer!r}'
    )
  name, vocabulary, tokens = prepared(config, say)
  return Corpus(name, tokens, vocabulary)


def check_vocabulary(corpus: Corpus, vocab_size: int) -> None:
  """Raises an InputError unless model and corpus have the same vocabulary."""
  if vocab_size > corpus.vocabulary.size:
    raise InputError(
      f'config.model.vocab_size is {vocab_size:,}, but the vocabulary of '
      f'{corpus.name} has {corpus.vocabulary.size} tokens'
    )
  for split, ids in corpus.tokens.items():
    outside = np.flatnonzero(ids >= vocab_size)
    if outside.size:
      position = int(outside[0])
      raise InputError(
        f'config.model.vocab_size is {vocab_size}, but token {position:,} of '
        f'the {split} split of {corpus.name} has the id {ids[position]}; its '
        f'vocabulary has {corpus.vocabulary.size} tokens'
      )


def _own_text(config: DataConfig) -> Corpus:
  documents = list(read_documents(config.path, text_field=config.text_field))
  fractions = (config.validation_fraction, config.test_fraction)
  parts = split_documents(documents, *fractions, config.path)
  vocabulary = ByteVocabulary()
  tokens = {split: _documents(parts[split], vocabulary) for split in SPLITS}
  return Corpus(pathlib.Path(config.path).name, tokens, vocabulary)


def _standard_library() -> Corpus:
  """Source files in the order of a checksum of their paths.

  So neighbours are unrelated, every part of the text is a mixture of all, and
  a file is in the same split under every version of Python.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = (path.relative_to(root) for path in root.rglob('*.py'))
  files = {_checksum(path): path for path in paths if _belongs(path)}
  documents = {split: [] for split in SPLITS}
  for checksum in sorted(files):
    text = (root / files[checksum]).read_bytes()
    documents[_split_of(checksum)].append(text)
  if not all(documents.values()):
    raise InputError(
      f'config.data.path is empty and {root} holds only {len(files)} source '
      "files of Python's standard library; give a text file"
    )
  vocabulary = ByteVocabulary()
  tokens = {
    split: _documents(texts, vocabulary) for split, texts in documents.items()
  }
  version = sysconfig.get_python_version()
  return Corpus(f"Python {version}'s standard library", tokens, vocabulary)


def _checksum(path: pathlib.Path) -> int:
  digest = hashlib.sha256(path.as_posix().encode()).digest()
  return int.from_bytes(digest, 'big')


def _split_of(checksum: int) -> str:
  place = checksum % FILES_PER_SPLIT
  return {0: 'test', 1: 'validation'}.get(place, 'train')


def _belongs(path: pathlib.Path) -> bool:
  folders = path.parts[:-1]
  # The build's own configuration (config-3.11-x86_64-linux-gnu) varies.
  built = any(name.startswith('config-') for name in folders)
  return not SKIPPED_FOLDERS.intersection(folders) and not built


def _documents(texts: list[bytes], vocabulary: ByteVocabulary) -> np.ndarray:
  """One array of ids, a boundary before each text."""
  boundary = np.array([vocabulary.boundary], np.uint16)
  parts = [
    part for text in texts for part in (boundary, vocabulary.encode(text))
  ]
  return np.concatenate(parts)
