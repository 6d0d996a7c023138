"""Anyone's own text: documents from files, folders and JSON lines."""

import codecs
import hashlib
import importlib
import json
import os
import stat
from collections.abc import Iterator

from txl_jax.errors import InputError

Chunks = Iterator[bytes]
JSON_LINES = ('.jsonl', '.ndjson')
# Module (a Python may lack it), maker of decoders, what those raise, options.
CODECS = {
  '.gz': ('zlib', 'decompressobj', 'error', 31),  # with gzip's header
  '.bz2': ('bz2', 'BZ2Decompressor', 'OSError'),
  '.xz': ('lzma', 'LZMADecompressor', 'LZMAError', 1),  # FORMAT_XZ
  '.zst': ('compression.zstd', 'ZstdDecompressor', 'ZstdError'),
}
CHUNK = 1 << 16


def read_documents(
  path: str, *, text_field: str = 'text', utf8: bool = False
) -> Iterator[bytes]:
  """Reads a file, or all files of a folder in the order of their names.

  A file is one document; of JSON lines (`.jsonl`, `.ndjson`), each line is one.
  The suffixes `.gz`, `.bz2`, `.xz` and, from Python 3.14 on, `.zst` say that a
  file is compressed. Documents without text are left out, as are hidden files
  and folders, and folders that are only linked.

  Args:
    path: a file or a folder.
    text_field: holds the text of each JSON line.
    utf8: whether plain files must be UTF-8; JSON lines always must.

  Yields:
    The bytes of one document after another; none is empty.

  Raises:
    InputError: naming the file and, where there is one, the line, for what
      cannot be read and for a source without any text.
  """
  found = False
  for _, full, status in _files(path):
    # Else an empty file would pass for compressed data that were cut off.
    if status.st_size:
      for document in _documents(full, text_field, utf8):
        if document:
          found = True
          yield document
  if not found:
    status = _status(path)
    what = 'has no text in it' if status.st_size else 'is empty'
    folder = stat.S_ISDIR(status.st_mode)
    raise _wrong(f'{path} {"is a folder without any text" if folder else what}')


def source_fingerprint(path: str) -> str:
  """A checksum that changes with the names, sizes and times of the files.

  Cheap, since it reads none of them; a file only touched counts as changed.

  Args:
    path: a file or a folder, as for `read_documents`.

  Raises:
    InputError: for a path that cannot be read.
  """
  digest = hashlib.sha256()
  for name, _, status in _files(path):
    # No name holds a zero byte, so different lists give different bytes.
    digest.update(os.fsencode(name))
    digest.update(f'\0{status.st_size} {status.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


def _wrong(what: str) -> InputError:
  return InputError(f'config.data.path: {what}')


def _files(path: str) -> list[tuple[str, str, os.stat_result]]:
  """Name, path and status of the file, or of the folder's files by name."""
  status = _status(path)
  if stat.S_ISREG(status.st_mode):
    return [(os.path.basename(path), path, status)]
  if not stat.S_ISDIR(status.st_mode):
    raise _wrong(f'{path} is neither a regular file nor a folder')
  paths = ((name, os.path.join(path, name)) for name in _names(path))
  files = [(name, full, _status(full)) for name, full in paths]
  return [file for file in files if stat.S_ISREG(file[2].st_mode)]


def _names(folder: str) -> list[str]:
  def stop(error: OSError):
    raise _unreadable(error.filename, error)

  names = []
  for parent, folders, files in os.walk(folder, onerror=stop):
    # In place: so the walk does not enter what is hidden.
    folders[:] = [name for name in folders if not name.startswith('.')]
    place = os.path.relpath(parent, folder)
    seen = (name for name in files if not name.startswith('.'))
    names += [os.path.normpath(os.path.join(place, name)) for name in seen]
  return sorted(names)


def _status(path: str) -> os.stat_result:
  try:
    return os.stat(path)
  # A ValueError is for a zero byte in the path.
  except (OSError, ValueError) as error:
    raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> InputError:
  reason = getattr(error, 'strerror', None) or error
  return _wrong(f'cannot read {path}: {reason}')


def _documents(path: str, text_field: str, utf8: bool) -> Chunks:
  stem, suffix = os.path.splitext(path.lower())
  compressed = suffix in CODECS
  of_lines = (stem if compressed else path.lower()).endswith(JSON_LINES)
  # A plain document is read at once: so there is no second copy of it.
  chunks = _read(path, CHUNK if compressed or of_lines else -1)
  if compressed:
    chunks = _decompressed(chunks, path, suffix)
  if of_lines:
    return _json_lines(chunks, path, text_field)
  return _whole(chunks, path, utf8)


def _whole(chunks: Chunks, path: str, utf8: bool) -> Chunks:
  document = b''.join(chunks)
  try:
    if utf8:
      document.decode()
  except UnicodeDecodeError as error:
    line = 1 + document.count(b'\n', 0, error.start)
    raise _wrong(f'{path}, line {line}: {_bad_byte(error)} the file') from error
  yield document


def _read(path: str, size: int) -> Chunks:
  try:
    with open(path, 'rb') as file:
      while chunk := file.read(size):
        yield chunk
  except OSError as error:
    raise _unreadable(path, error) from error


def _decompressed(chunks: Chunks, path: str, suffix: str) -> Chunks:
  # By hand: BZ2File and LZMAFile end at a damaged later stream in silence.
  name, maker, failure, *options = CODECS[suffix]
  try:
    module = importlib.import_module(name)
  except ImportError as error:
    raise _wrong(
      f'{path} must be decompressed first, this Python cannot read {suffix}'
    ) from error
  make, failure = getattr(module, maker), getattr(module, failure, OSError)
  decoder = make(*options)
  for chunk in chunks:
    while chunk:
      if decoder.eof:
        chunk = chunk.lstrip(b'\0')  # padding
        decoder = make(*options) if chunk else decoder
        continue
      try:
        yield decoder.decompress(chunk)
      except failure as error:
        raise _wrong(f'{path} is corrupt, no {suffix} data: {error}') from error
      chunk = decoder.unused_data
  if not decoder.eof:
    raise _wrong(f'{path} is truncated, its {suffix} data ends early')


def _json_lines(chunks: Chunks, path: str, text_field: str) -> Chunks:
  for number, line in enumerate(_lines(chunks), 1):
    if number == 1:
      line = line.removeprefix(codecs.BOM_UTF8)
    if line.strip():
      try:
        text = _text(line, text_field)
      except ValueError as error:
        raise _wrong(f'{path}, line {number}: {error}') from error
      yield text


def _lines(chunks: Chunks) -> Chunks:
  parts = []
  for chunk in chunks:
    *ended, rest = chunk.split(b'\n')
    for end in ended:
      yield b''.join([*parts, end])
      parts = []
    parts.append(rest)
  yield b''.join(parts)


def _text(line: bytes, text_field: str) -> bytes:
  """The text of a JSON line, or a ValueError that says what is wrong."""
  try:
    record = json.loads(line.decode())
    if not isinstance(record, dict):
      found = json.dumps(record)[:60]
    elif isinstance(text := record.get(text_field), str):
      return text.encode()
    elif text_field in record:
      found = f'{json.dumps(text)[:60]} there'
    else:
      found = f'only the fields {list(record)[:5]}'
  except UnicodeDecodeError as error:
    raise ValueError(f'{_bad_byte(error)} the line') from error
  # Of json, which raises these also for endless numbers and nesting.
  except (ValueError, RecursionError) as error:
    reason = str(error).replace(': line 1', ',')
    found = f'{line[:60].decode(errors="replace")!r} ({reason})'
  raise ValueError(
    f'expected a JSON object with text in the field {text_field!r}, found '
    f'{found}'
  )


def _bad_byte(error: UnicodeDecodeError) -> str:
  byte, at = error.object[error.start], error.start
  return f'expected UTF-8, found the byte 0x{byte:02x} at offset {at} of'
