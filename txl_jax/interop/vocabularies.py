"""Vocabularies of the other implementations.

All have a list of symbols by id, in objects pickled with PyTorch (`cache.pt`,
`vocab.bin`) or without (`cache.pkl`, `vocab.pkl`), or in a text file.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from txl_jax.data.symbols import SymbolVocabulary
from txl_jax.data.vocabulary import Vocabulary, vocabulary_from_json
from txl_jax.data.words import WordVocabulary
from txl_jax.errors import InputError
from txl_jax.interop.torch_files import load_torch
from txl_jax.interop.unpickler import StandIn

# Looked for beside a checkpoint, in this order.
NAMES = (
  'vocabulary.json',
  'vocab.bin',
  'vocab.pkl',
  'cache.pt',
  'cache.pkl',
  'vocab.txt',
)
BLANK = '_'  # of text8


def find_vocabulary(folder: pathlib.Path) -> Vocabulary | None:
  """The vocabulary in a folder; None if there is none."""
  paths = (folder / name for name in NAMES)
  path = next((path for path in paths if path.is_file()), None)
  return path and read_vocabulary(path)


def read_vocabulary(path: pathlib.Path) -> Vocabulary:
  """The vocabulary in a file.

  Args:
    path: of our own JSON, a text file with a symbol a line (its first column),
      or an object pickled with or without PyTorch: the official `Corpus` or
      `Vocab`, or the attributes of one.

  Raises:
    InputError: if the file is something else.
  """
  if not path.is_file():
    raise InputError(f'there is no vocabulary {path}')
  if path.suffix == '.json':
    try:
      return vocabulary_from_json(path.read_text())
    except (InputError, OSError, UnicodeDecodeError) as error:
      raise InputError(f'{path}: {error}') from error
  if path.suffix == '.txt':
    return from_symbols(WordVocabulary.from_file(path).words, False)
  found = _attributes(load_torch(path))
  symbols = found.get('idx2sym')
  if not isinstance(symbols, list) or not symbols:
    raise InputError(f'{path} holds no vocabulary: it has no list idx2sym')
  return from_symbols(symbols, bool(found.get('lower_case')))


def _attributes(loaded: Any) -> dict[str, Any]:
  """Of a vocabulary, or of the vocabulary of a corpus."""
  for _ in range(3):
    if isinstance(loaded, StandIn):
      loaded = loaded.state
    elif isinstance(loaded, dict) and 'vocab' in loaded:
      loaded = loaded['vocab']
  return loaded if isinstance(loaded, dict) else {}


def from_symbols(symbols: Sequence[Any], lower_case: bool) -> Vocabulary:
  """The vocabulary of a list of symbols.

  Numbers from 0 to 255 are bytes, as in the official enwik8; single characters
  with `_` for the blank are those of text8; all else is words.

  Args:
    symbols: by id.
    lower_case: whether text is put into lower case, if the symbols are words.

  Raises:
    InputError: naming a symbol that is no text, or stands there twice.
  """
  known: dict[str, int] = {}
  for i, symbol in enumerate(symbols):
    if not isinstance(symbol, str) or symbol in known:
      problem = 'again' if symbol in known else 'which is no text'
      raise InputError(f'symbol {i} of the vocabulary is {symbol!r}, {problem}')
    known[symbol] = i
  if all(s.isdecimal() and int(s) < 256 for s in symbols):
    return SymbolVocabulary(map(int, symbols), 'byte', documents=False)
  if BLANK in known and all(len(s) == 1 for s in symbols):
    texts = (' ' if s == BLANK else s for s in symbols)
    return SymbolVocabulary(map(ord, texts), 'character', documents=False)
  return WordVocabulary(symbols, lower_case)


def to_symbols(vocabulary: Vocabulary | None) -> list[str] | None:
  """The inverse; None for a vocabulary that the others do not know."""
  if isinstance(vocabulary, WordVocabulary):
    return vocabulary.words
  if isinstance(vocabulary, SymbolVocabulary) and not vocabulary.documents:
    if vocabulary.unit == 'byte':
      return [str(n) for n in vocabulary.symbols.tolist()]
    texts = map(chr, vocabulary.symbols.tolist())
    return [BLANK if text == ' ' else text for text in texts]
  return None


def vocabulary_state(vocabulary: Vocabulary | None) -> dict[str, Any] | None:
  """The attributes of the official `Vocab`; None if it cannot have them."""
  symbols = to_symbols(vocabulary)
  if symbols is None:
    return None
  ids = {symbol: i for i, symbol in enumerate(symbols)}
  unknown = {ids[s] for s in ('<unk>', '<UNK>') if s in ids}
  return {
    'special': [],
    'min_freq': 0,
    'max_size': None,
    'lower_case': getattr(vocabulary, 'lower_case', False),
    'delimiter': None,
    'vocab_file': None,
    'counter': {},
    'idx2sym': symbols,
    'sym2idx': ids,
    **({'unk_idx': unknown.pop()} if unknown else {}),
  }
