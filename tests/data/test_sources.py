"""Anyone's own text."""

import bz2
import gzip
import json
import lzma
import os
import pathlib
import sys

import pytest

from txl_jax.data import sources
from txl_jax.data.sources import CHUNK, read_documents
from txl_jax.errors import InputError

COMPRESS = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress}
SUFFIXES = sorted(COMPRESS)
TEXT = 'Zeile eins\nZeile zwei: ä€😀\n'.encode()


def _write(folder: pathlib.Path, **files: bytes) -> str:
  """Writes files; in a keyword, `__` stands for `/` and `_` for a dot."""
  for name, raw in files.items():
    path = folder / name.replace('__', '/').replace('_', '.')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
  return str(folder)


def _lines(*texts: str) -> bytes:
  return b''.join(json.dumps({'text': text}).encode() + b'\n' for text in texts)


def _refusal(path: str | pathlib.Path, **options) -> str:
  """The one sentence in which a path is refused."""
  with pytest.raises(InputError) as caught:
    list(read_documents(str(path), **options))
  message = str(caught.value)
  assert message.startswith('config.data.path: ') and '\n' not in message
  return message


def _file_refusal(folder: pathlib.Path, name: str, raw: bytes, **options):
  path = folder / name
  path.write_bytes(raw)
  message = _refusal(path, **options)
  return message.removeprefix(f'config.data.path: {path}').lstrip(', ')


@pytest.mark.parametrize('raw', [TEXT, b'\xff\x00', b'\r\n', b'x' * 3 * CHUNK])
def test_a_file_is_one_document(tmp_path, raw):
  path = _write(tmp_path, a_txt=raw) + '/a.txt'
  assert list(read_documents(path)) == [raw]


def test_a_folder_is_its_files_in_order(tmp_path):
  root = _write(tmp_path, b=b'b', a__z=b'a/z', a_txt=b'a.txt', B=b'B', e=b'')
  _write(tmp_path, c_jsonl=_lines('c1', 'c2'), d_txt_gz=gzip.compress(b'd'))
  _write(tmp_path, a__b__c=b'a/b/c')
  # As their names compare: '.' stands before '/', capitals before both.
  expected = [b'B', b'a.txt', b'a/b/c', b'a/z', b'b', b'c1', b'c2', b'd']
  assert list(read_documents(root + '/')) == expected


def test_hidden_and_linked_folders_are_skipped(tmp_path):
  root = _write(tmp_path, _git__config=b'no', a___b__c=b'no', _x=b'no', y=b'y')
  assert {'.git', '.x'} <= set(os.listdir(root))
  (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
  (tmp_path / 'z').symlink_to('y')
  assert list(read_documents(root)) == [b'y', b'y']
  assert list(read_documents(str(tmp_path / '.git'))) == [b'no']


def test_only_regular_files_are_read(tmp_path):
  root = _write(tmp_path, a=b'a')
  os.mkfifo(tmp_path / 'pipe')
  assert list(read_documents(root)) == [b'a']
  assert 'neither a regular file nor a folder' in _refusal(f'{root}/pipe')
  (tmp_path / 'b').symlink_to('gone')
  assert f'cannot read {root}/b: No such file' in _refusal(root)


def test_folders_and_json_lines_are_streamed(tmp_path):
  root = _write(tmp_path, a=b'a', b_jsonl=_lines(*['x' * CHUNK] * 3) + b'bad')
  documents = read_documents(root)
  assert next(documents) == b'a'
  assert [len(next(documents)) for _ in range(3)] == [CHUNK] * 3
  with pytest.raises(InputError, match='b.jsonl, line 4'):
    next(documents)


@pytest.mark.parametrize('suffix', ['.jsonl', '.ndjson', '.JSONL', '.jsonl.gz'])
def test_each_json_line_is_a_document(tmp_path, suffix):
  raw = b'\xef\xbb\xbf{"text": "a\\nb", "id": 1}\r\n\n  \n'
  raw += b'{"text": ""}\n{"text": "\\ud83d\\ude00 \xc3\xa4"}'
  path = tmp_path / f'a{suffix}'
  path.write_bytes(gzip.compress(raw) if suffix.endswith('.gz') else raw)
  # An empty text is left out, as an empty file of a folder is.
  assert list(read_documents(str(path))) == [b'a\nb', '😀 ä'.encode()]
  with pytest.raises(InputError, match="line 1: .* in the field 'id', found 1"):
    next(read_documents(str(path), text_field='id'))


@pytest.mark.parametrize('size', [1, 2, 7, 50])
def test_json_lines_survive_any_chunks(tmp_path, monkeypatch, size):
  monkeypatch.setattr('txl_jax.data.sources.CHUNK', size)
  root = _write(tmp_path, a_jsonl=_lines('ä', 'x' * 99, '\n', 'b')[:-1])
  assert b'|'.join(read_documents(root)).decode() == f'ä|{"x" * 99}|\n|b'


BAD_LINES = {
  b'{"text": "a"': "(Expecting ',' delimiter, column 13",
  b'["a"]': 'found ["a"]',
  b'{"body": "a", "id": 1}': "found only the fields ['body', 'id']",
  b'{"id": "0", "text": null}': 'found null there',
  b'{"text": "\\ud800"}': 'surrogates not allowed',
  b'\xef\xbb\xbf{"text": "a"}': 'BOM',
  b'[' * 100_000: 'recursion',
  b'{"n": ' + b'1' * 5000 + b'}': 'Exceeds the limit',
}


@pytest.mark.parametrize('line', BAD_LINES, ids=lambda line: repr(line[:20]))
def test_a_bad_json_line_is_named(tmp_path, line):
  raw = _lines('fine') + b'\n' + line + b'\n' + _lines('fine')
  message = _file_refusal(tmp_path, 'a.jsonl', raw)
  start = "line 3: expected a JSON object with text in the field 'text', found "
  assert message.startswith(start)
  assert BAD_LINES[line] in message and len(message) < 300


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_compressed_files_are_read(tmp_path, suffix):
  text = os.urandom(2 * CHUNK) + TEXT
  raw = COMPRESS[suffix](text)
  # Several streams, as parallel compressors write, and padding.
  for i, whole in enumerate([raw, raw + raw, raw + b'\0' * 8]):
    (tmp_path / f'{i}.txt{suffix}').write_bytes(whole)
  (tmp_path / f'3{suffix.upper()}').write_bytes(raw)
  expected = [text, text + text, text, text]
  assert list(read_documents(str(tmp_path))) == expected


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('name', ['a', 'a.jsonl'])
def test_truncated_data_are_an_error(tmp_path, suffix, name):
  raw = COMPRESS[suffix](_lines('a' * 100))
  for end in (1, len(raw) // 2, len(raw) - 1):
    message = _file_refusal(tmp_path, name + suffix, raw[:end])
    assert message == f'is truncated, its {suffix} data ends early'


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_corrupt_data_are_an_error(tmp_path, suffix):
  raw = COMPRESS[suffix](TEXT)
  middle = len(raw) // 2
  damaged = raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]
  # The second stream too, where Python's own files end without a word.
  for bad in (TEXT, b'\0' * 64, damaged, raw + damaged, raw + TEXT):
    message = _file_refusal(tmp_path, 'a' + suffix, bad)
    assert message.startswith(f'is corrupt, no {suffix} data: ')


def test_zstd_needs_a_python_that_has_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'compression.zstd', None)
  message = _file_refusal(tmp_path, 'a.zst', b'anything')
  assert message.startswith('must be decompressed first, this Python cannot')


@pytest.mark.parametrize('suffix', ['', *SUFFIXES])
def test_bytes_that_are_no_utf8_are_named(tmp_path, suffix):
  raw = TEXT + b'ab\xffcd\n'
  packed = COMPRESS.get(suffix, bytes)(raw)
  message = _file_refusal(tmp_path, f'a{suffix}', packed, utf8=True)
  found = f'found the byte 0xff at offset {len(TEXT) + 2} of the file'
  assert message == f'line 3: expected UTF-8, {found}'
  assert list(read_documents(str(tmp_path / f'a{suffix}'))) == [raw]
  lines = COMPRESS.get(suffix, bytes)(_lines('fine') + b'{"text": "\xe4"}')
  message = _file_refusal(tmp_path, f'a.jsonl{suffix}', lines)
  found = 'found the byte 0xe4 at offset 10 of the line'
  assert message == f'line 2: expected UTF-8, {found}'


def test_a_source_without_text_is_an_error(tmp_path):
  assert _file_refusal(tmp_path, 'a', b'') == 'is empty'
  assert _file_refusal(tmp_path, 'b.jsonl', b'\n \n') == 'has no text in it'
  for suffix, compress in COMPRESS.items():
    assert _file_refusal(tmp_path, 'c' + suffix, b'') == 'is empty'
    message = _file_refusal(tmp_path, 'c' + suffix, compress(b''))
    assert message == 'has no text in it'
  (tmp_path / '.hidden').write_bytes(b'text')
  assert _refusal(tmp_path).endswith('is a folder without any text')


def test_what_cannot_be_found_is_named(tmp_path):
  root = _write(tmp_path, a=b'a')
  for path, reason in (
    ('', 'No such file or directory'),
    (f'{root}/gone.txt', 'No such file or directory'),
    (f'{root}/a/inside.txt', 'Not a directory'),
    (f'{root}/zero\0byte', 'embedded null byte'),
  ):
    expected = f'config.data.path: cannot read {path}: {reason}'
    assert _refusal(path) == expected
    with pytest.raises(InputError, match='cannot read'):
      sources.source_fingerprint(path)


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
  root = _write(tmp_path, a=b'a', b__c=b'c')

  # The tests may run as root, whom no permission stops.
  def refuse(path, *_):
    raise PermissionError(13, 'Permission denied', os.fspath(path))

  with monkeypatch.context() as patch:
    patch.setattr('builtins.open', refuse)
    assert _refusal(root).endswith(f'cannot read {root}/a: Permission denied')
  monkeypatch.setattr('os.scandir', refuse)
  assert _refusal(root).endswith(f'cannot read {root}: Permission denied')


def test_the_fingerprint_tells_changes(tmp_path):
  root = _write(tmp_path, a=b'a', b__c=b'c', _hidden=b'h')
  before = sources.source_fingerprint(root)
  assert len(before) == 16 and int(before, 16) >= 0
  _write(tmp_path, _hidden=b'other')
  assert sources.source_fingerprint(root) == before
  a, c, d = (tmp_path / name for name in ('a', 'b/c', 'b/d'))
  found = {before}
  for change in (
    lambda: a.write_bytes(b'aa'),
    lambda: os.utime(a, ns=(0, a.stat().st_mtime_ns + 1)),
    lambda: c.rename(d),
    d.unlink,
  ):
    change()
    found.add(sources.source_fingerprint(root))
  assert len(found) == 5
  # One file has the fingerprint of a folder with nothing else in it.
  assert sources.source_fingerprint(str(a)) == sources.source_fingerprint(root)
