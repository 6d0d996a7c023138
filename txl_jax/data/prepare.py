"""From raw text to a prepared corpus, once."""

import hashlib
import itertools
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from txl_jax.config import DataConfig
from txl_jax.data.builders import find_lm1b_vocabulary, read_corpus
from txl_jax.data.cache import read_cache, write_cache
from txl_jax.data.named import official_splits, read_named
from txl_jax.data.sources import read_documents, source_fingerprint
from txl_jax.data.splits import SPLITS, split_documents
from txl_jax.data.subwords import (
  SubwordVocabulary,
  load_subwords,
  train_subwords,
)
from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import (
  ByteVocabulary,
  Vocabulary,
  id_type,
)
from txl_jax.data.words import WordVocabulary
from txl_jax.errors import InputError

Say = Callable[[str], None]
# Raises when what is prepared from the same source changes.
VERSION = 1
LARGE = 2**24  # bytes
# Fields that do not change what is prepared.
ELSEWHERE = ('manual_dir', 'cache_dir', 'path', 'roll', 'tokenizer_path')
WORDS_FROM_TRAIN_ONLY = ('wikitext103',)


def prepared(
  config: DataConfig, say: Say
) -> tuple[str, Vocabulary, dict[str, np.ndarray]]:
  """The corpus of a configuration, prepared if it is not yet.

  Args:
    config: where the text comes from.
    say: receives lines of progress.

  Returns:
    Name, vocabulary, and ids of each split, mapped into memory.

  Raises:
    InputError: for a source that cannot be read, or a disk that cannot be
      written.
  """
  cache = pathlib.Path(config.cache_dir).expanduser()
  folder = cache / _key(config)
  found = read_cache(folder)
  if found is None:
    name, vocabulary, texts = _read(config, cache, say)
    say(f'Vocabulary of {vocabulary.size:,} tokens')
    splits = {split: _encode(vocabulary, texts[split]()) for split in SPLITS}
    write_cache(folder, name, vocabulary, splits, _Progress(say))
    found = read_cache(folder)
    say(f'Prepared in {folder}')
  return found


def _key(config: DataConfig) -> str:
  """The cache's name: another source or option, another name."""
  fields = {
    name: value for name, value in vars(config).items() if name not in ELSEWHERE
  }
  if config.path:
    fields['source'] = source_fingerprint(config.path)
  if config.tokenizer_path:
    fields['subwords'] = _file_checksum(config.tokenizer_path)
  text = json.dumps({'version': VERSION, **fields}, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  name = config.corpus or config.tfds_name or pathlib.Path(config.path).stem
  name = re.sub('[^A-Za-z0-9_.-]', '-', name)
  return f'{name}-{digest}'


def _file_checksum(path: str) -> str:
  try:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  except OSError as error:
    raise InputError(
      f'config.data.tokenizer_path: cannot read {path}: {error.strerror}'
    ) from error


def _read(
  config: DataConfig, cache: pathlib.Path, say: Say
) -> tuple[str, Vocabulary, dict[str, Callable[[], Iterator[bytes]]]]:
  """Name, vocabulary, and for each split a function that reads its texts."""
  if config.corpus:
    texts = {split: _chunks(config, cache, say, split) for split in SPLITS}
    return config.corpus, _official(config, texts, say), texts
  parts = _own_parts(config, cache, say)
  texts = {split: lambda split=split: iter(parts[split]) for split in SPLITS}
  name = config.tfds_name or pathlib.Path(config.path).name
  return name, _own(config, parts), texts


def _own_parts(
  config: DataConfig, cache: pathlib.Path, say: Say
) -> dict[str, list[bytes]]:
  """The documents of each split."""
  if config.tfds_name:
    folder = str(cache / 'tensorflow_datasets')
    parts = read_named(
      config.tfds_name, text_field=config.text_field, data_dir=folder, say=say
    )
    if splits := official_splits(parts):
      return splits
    documents = list(itertools.chain.from_iterable(parts.values()))
  else:
    say(f'Reading {config.path}')
    documents = list(
      read_documents(config.path, text_field=config.text_field, utf8=True)
    )
  fractions = (config.validation_fraction, config.test_fraction)
  name = config.tfds_name or config.path
  return split_documents(documents, *fractions, name)


def _chunks(
  config: DataConfig, cache: pathlib.Path, say: Say, split: str
) -> Callable[[], Iterator[bytes]]:
  def read() -> Iterator[bytes]:
    splits = read_corpus(
      config.corpus,
      manual_dir=os.path.expanduser(config.manual_dir),
      data_dir=str(cache / 'tensorflow_datasets'),
      say=say,
    )
    return splits[split]

  return read


def _official(
  config: DataConfig, texts: dict[str, Callable[[], Iterator[bytes]]], say: Say
) -> Vocabulary:
  """The vocabulary of the paper's code for one of its corpora."""
  name = config.corpus

  def every() -> Iterable[bytes]:
    only_train = name in WORDS_FROM_TRAIN_ONLY
    return (
      text
      for split in SPLITS[: 1 if only_train else 3]
      for text in texts[split]()
    )

  say(f'Reading {name}')
  if name in ('enwik8', 'text8'):
    return SymbolVocabulary.of(every(), 'byte', documents=False)
  if name == 'lm1b':
    path = find_lm1b_vocabulary(os.path.expanduser(config.manual_dir))
    return WordVocabulary.from_file(path)
  return WordVocabulary.of(every(), lower_case=name == 'ptb')


def _own(config: DataConfig, parts: dict[str, list[bytes]]) -> Vocabulary:
  train = parts['train']
  if config.tokenizer == 'bytes':
    return ByteVocabulary()
  if config.tokenizer == 'characters':
    # There is none for unknown characters, so all splits count.
    every = [text for split in SPLITS for text in parts[split]]
    return SymbolVocabulary.of(every, 'character', documents=True)
  if config.tokenizer == 'words':
    return WordVocabulary.of(
      train,
      lower_case=config.lower_case,
      documents=True,
      min_count=config.min_count,
      max_size=config.max_vocabulary,
      unknown=True,
    )
  if config.tokenizer_path:
    return load_subwords(config.tokenizer_path)
  return train_subwords(train, config.max_vocabulary or 8192)


def _encode(
  vocabulary: Vocabulary, texts: Iterator[bytes]
) -> Iterator[np.ndarray]:
  """The ids of texts, each a document if the vocabulary has a boundary."""
  if isinstance(vocabulary, SubwordVocabulary):
    encoded = vocabulary.encode_documents(texts)  # by several threads
  elif vocabulary.boundary is None:
    encoded = map(vocabulary.encode, _joined(texts))
  else:
    encoded = map(vocabulary.encode, texts)
  if vocabulary.boundary is None:
    return encoded
  boundary = np.array([vocabulary.boundary], id_type(vocabulary.size))
  return (np.concatenate([boundary, ids]) for ids in encoded)


def _joined(texts: Iterator[bytes]) -> Iterator[bytes]:
  """The same lines in larger texts, which take less time a word."""
  parts: list[bytes] = []
  for text in texts:
    parts.append(text)
    if sum(map(len, parts)) >= LARGE or not text.endswith(b'\n'):
      yield b''.join(parts)
      parts = []
  if parts:
    yield b''.join(parts)


class _Progress:
  """Says every few seconds how far it is."""

  def __init__(self, say: Say):
    self._say = say
    self._said = time.monotonic()

  def __call__(self, split: str, n_tokens: int) -> None:
    if time.monotonic() > self._said + 5:
      self._said = time.monotonic()
      self._say(f'{split}: {n_tokens:,} tokens')
