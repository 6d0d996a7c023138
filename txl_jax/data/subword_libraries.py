"""Two libraries of subwords, as one."""

import base64
import functools
import importlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from txl_jax.errors import InputError

DOCUMENT = '<|document|>'
# What ends a text in most published vocabularies; the first one found counts.
BOUNDARIES = ('<|endoftext|>', '</s>', '<eos>', '[SEP]', DOCUMENT)
# Where a long text is cut if no subword has a blank after other signs; into
# pieces of so many characters, of which a library gets so many at once.
CUT, PIECE, BATCH = re.compile('(?<=[!-~])(?= )'), 2**16, 2**8
BLANK = '\u2581'  # stands for a blank in sentencepiece
WITHIN = re.compile(f'[^{BLANK}]{BLANK}')
BYTE = re.compile('<0x([0-9A-F]{2})>')


class _Model(NamedTuple):
  """What a library offers; `saved` is what JSON can hold of it."""

  size: int
  boundary: int | None
  divisible: bool
  encode: Callable[[list[str]], Iterable[list[int]]]
  decode: Callable[[list[int]], str]
  lengths: Callable[[], list[int]]
  saved: dict | str


def _open_tokenizers(values: Any) -> _Model:
  library = _imported('tokenizers')
  try:
    values, boundary = _prepared(values)
    tokenizer = library.Tokenizer.from_str(json.dumps(values))
  except Exception as error:  # the library raises nothing narrower
    raise InputError(
      f'expected the JSON of a tokenizer, found something else ({error!r})'
    ) from error
  # So the names of special tokens are text like any other.
  tokenizer.encode_special_tokens = True
  values = json.loads(tokenizer.to_str())
  byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)

  def encode(texts: list[str]) -> Iterator[list[int]]:
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids in zip(texts, (encoding.ids for encoding in found)):
      yield _spelled(tokenizer, text, boundary) if boundary in ids else ids

  return _Model(
    # There can be gaps.
    size=max(tokenizer.get_vocab().values(), default=-1) + 1,
    boundary=boundary,
    # True of what is trained here; others may have words with blanks in them.
    divisible=values['model']['type'] == 'BPE'
    and values['normalizer'] is None
    and repr(tokenizer.pre_tokenizer) == repr(byte_level)
    and all(token['special'] for token in values['added_tokens']),
    encode=encode,
    decode=functools.partial(tokenizer.decode, skip_special_tokens=False),
    lengths=lambda: _lengths(tokenizer, byte_level),
    saved=values,
  )


def _prepared(values: dict) -> tuple[dict, int | None]:
  """A tokenizer.json that encodes whole texts, always alike; its boundary."""
  values = {**values, 'truncation': None, 'padding': None}
  if 'dropout' in values['model']:
    values['model'] = {**values['model'], 'dropout': None}
  added = {token['content']: token for token in values.get('added_tokens', ())}
  name = next((name for name in BOUNDARIES if name in added), None)
  if name is None:
    return values, None
  added[name] = {**added[name], 'special': True}
  return {**values, 'added_tokens': [*added.values()]}, added[name]['id']


def _spelled(tokenizer: Any, text: str, boundary: int) -> list[int]:
  """For models that have the boundary among their words: cuts it in two."""
  found = tokenizer.encode(text, add_special_tokens=False)
  spans = [s for i, s in zip(found.ids, found.offsets) if i == boundary]
  if not spans:
    return found.ids
  if any(end - start < 2 for start, end in spans):
    raise InputError(
      'the text has a character in it that the vocabulary takes for its '
      f'boundary {tokenizer.id_to_token(boundary)!r}'
    )
  cuts = [start + 1 for start, _ in spans]
  parts = itertools.pairwise([0, *cuts, len(text)])
  ids = (_spelled(tokenizer, text[low:high], boundary) for low, high in parts)
  return list(itertools.chain(*ids))


def _lengths(tokenizer: Any, byte_level: Any) -> list[int]:
  """How many characters begin in each token."""
  size = max(tokenizer.get_vocab().values(), default=-1) + 1
  tokens = [tokenizer.id_to_token(i) or '' for i in range(size)]
  if 'ByteLevel' in repr(tokenizer.decoder):
    # U+0080 to U+00BF: all bytes that go on with a character, after 0xC2.
    shown = map(byte_level.pre_tokenize_str, map(chr, range(0x80, 0xC0)))
    later = {signs[1] for [(signs, _)] in shown}
    return [sum(sign not in later for sign in token) for token in tokens]
  # After another token, since some decoders treat the first differently.
  plain = (i for i, t in enumerate(tokens) if t.isascii() and t.isalpha())
  pairs = [[first, i] for first in [next(plain, 0)] for i in range(size)]
  texts = tokenizer.decode_batch(pairs, skip_special_tokens=False)
  before = len(tokenizer.decode(pairs[0][:1], skip_special_tokens=False))
  return [_length(t, len(text) - before) for t, text in zip(tokens, texts)]


def _length(token: str, length: int) -> int:
  """Of a token; of one that is a byte, whether a character begins with it."""
  byte = BYTE.fullmatch(token)
  return int(byte[1], 16) & 0xC0 != 0x80 if byte else max(length, 0)


def _open_sentencepiece(raw: bytes) -> _Model:
  library = _imported('sentencepiece')
  try:
    # The library takes no bytes for no argument.
    processor = library.SentencePieceProcessor(model_proto=raw or b'?')
  except RuntimeError as error:
    raise InputError(
      f'expected a model of sentencepiece, found {len(raw):,} other bytes'
    ) from error
  pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
  ids = {piece: i for i, piece in enumerate(pieces)}
  # No text becomes a control symbol.
  silent = [processor.is_control(i) for i in range(len(pieces))]
  found = (ids[name] for name in BOUNDARIES if name in ids)
  keeps_blanks = processor.normalize(' a  b ') == ' a  b '.replace(' ', BLANK)
  # The library takes U+2581 for a blank, unless it is given as bytes.
  given = [ids.get(f'<0x{byte:02X}>') for byte in BLANK.encode()]
  separable = keeps_blanks and None not in given

  def encode(texts: list[str]) -> Iterator[list[int]]:
    parts = [text.split(BLANK) if separable else [text] for text in texts]
    encoded = iter(processor.encode([p for some in parts for p in some]))
    for some in parts:
      ids = next(encoded)
      for part in itertools.islice(encoded, len(some) - 1):
        ids += given + part
      yield ids

  return _Model(
    size=len(pieces),
    boundary=next((i for i in found if silent[i]), None),
    divisible=keeps_blanks and not any(map(WITHIN.search, pieces)),
    encode=encode,
    decode=processor.decode,
    lengths=lambda: [
      0 if silent[i] else _length(p, len(p)) for i, p in enumerate(pieces)
    ],
    saved=base64.b64encode(raw).decode(),
  )


def _train_tokenizers(texts: Iterator[str], size: int) -> dict:
  library = _imported('tokenizers')
  byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer = library.Tokenizer(library.models.BPE())
  tokenizer.pre_tokenizer = byte_level
  tokenizer.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=size,
    show_progress=False,
    special_tokens=[DOCUMENT],
    initial_alphabet=sorted(byte_level.alphabet()),
  )
  tokenizer.train_from_iterator(texts, trainer)
  return json.loads(tokenizer.to_str())


def _train_sentencepiece(texts: Iterator[str], size: int) -> bytes:
  library, file = _imported('sentencepiece'), io.BytesIO()
  options = {'model_type': 'bpe', 'vocab_size': size, 'hard_vocab_limit': False}
  options |= {'byte_fallback': True, 'normalization_rule_name': 'identity'}
  options |= {'add_dummy_prefix': False, 'remove_extra_whitespaces': False}
  # So that indented text is not one id for each blank.
  options |= {'allow_whitespace_only_pieces': True}
  options |= dict.fromkeys(['bos_id', 'eos_id', 'pad_id'], -1)
  # It would leave out what is longer.
  options |= {'control_symbols': [DOCUMENT], 'max_sentence_length': 2**30}
  # Read before, since the library would wrap the error of a text.
  pieces = iter([piece for piece, _ in cut_pieces(texts, True)])
  try:
    library.SentencePieceTrainer.train(
      sentence_iterator=pieces, model_writer=file, minloglevel=2, **options
    )
  except RuntimeError as error:
    reason = str(error).rpartition('] ')[2].strip() or 'there is no text'
    raise InputError(
      f'sentencepiece cannot find {size:,} subwords: {reason}'
    ) from error
  return file.getvalue()


OPENERS = {'tokenizers': _open_tokenizers, 'sentencepiece': _open_sentencepiece}
TRAINERS = {
  'tokenizers': _train_tokenizers,
  'sentencepiece': _train_sentencepiece,
}


def _imported(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(
      f'{name}, which finds the subwords, is not here: pip install {name}'
    ) from error


def cut_pieces(
  texts: Iterable[str], divisible: bool
) -> Iterator[tuple[str, bool]]:
  """Pieces of texts, each with whether it is the last one of its text."""
  for text in texts:
    start = 0
    while divisible and (found := CUT.search(text, start + PIECE)):
      yield text[start : found.start()], False
      start = found.start()
    yield text[start:], True
