"""Files that are found or downloaded, and archives, whole and broken."""

import contextlib
import hashlib
import io
import pathlib
import re
import tarfile
import urllib.error
import urllib.request
import zipfile

import pytest

from txl_jax.data import downloads
from txl_jax.data.builders import find_lm1b_vocabulary
from txl_jax.data.downloads import (
  File,
  cut_at_lines,
  find_or_download,
  open_archive,
  verify,
)
from txl_jax.errors import InputError

CONTENTS = {'a/one': b'1' * 200, 'a/two': b'', 'b': bytes(range(256)) * 5}


@pytest.fixture(autouse=True)
def only_files_are_fetched(monkeypatch):
  real = urllib.request.urlopen

  def urlopen(request, timeout):
    if not request.full_url.startswith('file:'):
      raise urllib.error.URLError('no network in tests')
    return real(request, timeout=timeout)

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
  monkeypatch.setattr(downloads, 'BLOCK', 64)


def _zip(contents: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _tar(contents: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


KINDS = pytest.mark.parametrize(
  'name, pack', [('x.zip', _zip), ('x.tar.gz', _tar)]
)


def _read(path: pathlib.Path, names) -> dict[str, bytes]:
  with open_archive(path, names, path.parent) as members:
    return {name: b''.join(read()) for name, read in members.items()}


def _error(path: pathlib.Path, names) -> str:
  with pytest.raises(InputError) as error:
    _read(path, names)
  assert list(path.parent.iterdir()) == [path]
  return str(error.value)


@KINDS
def test_members(tmp_path, name, pack):
  path = tmp_path / name
  path.write_bytes(pack(CONTENTS))
  assert _read(path, CONTENTS) == CONTENTS
  assert _read(path, ['b']) == {'b': CONTENTS['b']}
  with open_archive(path, CONTENTS, tmp_path) as members:
    # Each can be read again, and two at once.
    pairs = zip(members['a/one'](), members['b']())
    assert {(len(one), len(b)) for one, b in pairs} == {(64, 64), (8, 64)}
    assert b''.join(members['b']()) == CONTENTS['b']
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  'climbing', ['../x', '/x', 'a/../../x', '..\\x', 'C:\\x', 'a/..']
)
@KINDS
def test_climbing_member(tmp_path, name, pack, climbing):
  path = tmp_path / name
  path.write_bytes(pack({**CONTENTS, climbing: b'x'}))
  error = _error(path, CONTENTS)
  assert f'{path} has a member {climbing!r}, expected only paths that' in error


@KINDS
def test_without_a_member(tmp_path, name, pack):
  path = tmp_path / name
  path.write_bytes(pack(CONTENTS))
  error = _error(path, ['b', 'c'])
  assert error == f"{path} lacks 'c', expected among its members"


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_no_member(tmp_path, kind):
  path = tmp_path / 'x.tar.gz'
  with tarfile.open(path, 'w:gz') as archive:
    member = tarfile.TarInfo('b')
    member.type, member.linkname = kind, '/etc/passwd'
    archive.addfile(member)
  assert "lacks 'b'" in _error(path, ['b'])


@KINDS
def test_cut_off(tmp_path, name, pack):
  path = tmp_path / name
  data = pack(CONTENTS)
  for size in range(0, len(data), 7):
    path.write_bytes(data[:size])
    try:
      # What ends a tar is not missed.
      assert _read(path, CONTENTS) == CONTENTS
    except InputError as error:
      assert re.search(' is not a whole archive: | lacks ', str(error))


@KINDS
def test_every_damaged_byte(tmp_path, name, pack):
  """An InputError or, in what does not matter, none; nothing else."""
  path = tmp_path / name
  data = pack(CONTENTS)
  for at in range(len(data)):
    path.write_bytes(data[:at] + bytes([data[at] ^ 0xA5]) + data[at + 1 :])
    with contextlib.suppress(InputError):
      _read(path, CONTENTS)


def test_number_of_tokens(tmp_path):
  path = tmp_path / 'x'
  path.write_bytes(b' = a = \n' * 20 + b'word' * 2)
  verify(File('x', n_tokens=81), path)
  with pytest.raises(InputError, match='has 81 words and .*, expected 1,082'):
    verify(File('x', n_tokens=1082), path)


def test_real_wikitext_has_the_published_number_of_tokens(
  data_dir, monkeypatch
):
  monkeypatch.setattr(downloads, 'BLOCK', 1 << 20)
  folder = data_dir / 'wikitext2_valid_test'
  verify(File('', n_tokens=217_646), folder / 'wiki.valid.tokens')
  verify(File('', n_tokens=245_569), folder / 'wiki.test.tokens')


def test_download(tmp_path):
  """From the second place, since the first has another file."""
  (tmp_path / 'bad').write_bytes(b'not found')
  (tmp_path / 'good').write_bytes(b'text')
  urls = tuple((tmp_path / name).as_uri() for name in ('bad', 'good'))
  checksum = 'md5:' + hashlib.md5(b'text').hexdigest()
  file, folder, said = File('x', checksum, urls), tmp_path / 'new', []
  path = find_or_download(file, '', folder, said.append)
  assert path == folder / 'x'
  assert path.read_bytes() == b'text'
  assert list(folder.iterdir()) == [path]
  assert said == [f'Downloading {url}' for url in urls]
  # Once there, it is verified and taken.
  assert find_or_download(file, '', folder, said.append) == path
  assert len(said) == 2
  path.write_bytes(b'else')
  with pytest.raises(InputError, match=f'^{path} has the md5 checksum'):
    find_or_download(file, '', folder, said.append)


def test_progress(tmp_path, monkeypatch):
  monkeypatch.setattr(downloads, 'BLOCKS_PER_LINE_OF_PROGRESS', 2)
  (tmp_path / 'good').write_bytes(bytes(300))
  said = []
  file = File('x', urls=((tmp_path / 'good').as_uri(),))
  find_or_download(file, '', tmp_path, said.append)
  assert said[1:] == ['x: 128 of 300 bytes', 'x: 256 of 300 bytes']


def test_no_place_has_it(tmp_path):
  (tmp_path / 'bad').write_bytes(b'not found')
  urls = ((tmp_path / 'bad').as_uri(), 'https://nowhere/x')
  file = File('x', 'md5:' + 32 * '0', urls)
  with pytest.raises(InputError) as error:
    find_or_download(file, '', tmp_path / 'new', print)
  digest = hashlib.md5(b'not found').hexdigest()
  assert f'has the md5 checksum {digest}, expected 000' in str(error.value)
  assert 'no network in tests' in str(error.value)
  assert not list((tmp_path / 'new').iterdir())


@pytest.mark.parametrize('error', [OSError('reset'), KeyboardInterrupt()])
def test_interrupted_download(tmp_path, monkeypatch, error):
  class Answer(io.BytesIO):
    headers = {'Content-Length': '1000'}

    def read(self, size):
      if self.tell():
        raise error
      return super().read(size)

  answer = Answer(bytes(500))
  monkeypatch.setattr(urllib.request, 'urlopen', lambda *_, timeout: answer)
  with pytest.raises((InputError, KeyboardInterrupt)):
    find_or_download(File('x', urls=('https://x',)), '', tmp_path, print)
  assert not list(tmp_path.iterdir())


def test_download_that_ends_early(tmp_path, monkeypatch):
  class Answer(io.BytesIO):
    headers = {'Content-Length': '1000'}

  answer = Answer(bytes(500))
  monkeypatch.setattr(urllib.request, 'urlopen', lambda *_, timeout: answer)
  with pytest.raises(InputError, match='https://x ended after 500 of 1000 by'):
    find_or_download(File('x', urls=('https://x',)), '', tmp_path, print)


def test_find_lm1b_vocabulary(tmp_path):
  with pytest.raises(
    InputError, match=r'1b_word_vocab.txt is not in .*; fetch'
  ):
    find_lm1b_vocabulary(str(tmp_path))
  with pytest.raises(InputError, match=r"\(''\); fetch https://.* and set"):
    find_lm1b_vocabulary('')
  (tmp_path / '1b_word_vocab.txt').write_text('<S>\n')
  assert find_lm1b_vocabulary(str(tmp_path)) == tmp_path / '1b_word_vocab.txt'


def test_manual_dir_is_no_folder():
  with pytest.raises(
    InputError, match="manual_dir must be a folder, found '/x'"
  ):
    find_or_download(File('x'), '/x', pathlib.Path('/x'), print)


def test_cut_at_lines():
  lines = [b'x' * n + b'\n' for n in (10, 60, 63, 64, 200, 0, 5)]
  text = b''.join(lines) + b'end'
  for size in (1, 7, 64, 1000):
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    chunks = list(cut_at_lines(blocks))
    assert b''.join(chunks) == text
    assert max(map(len, chunks)) <= 64
    assert chunks[:3] == [lines[0], lines[1], lines[2]]
  assert list(cut_at_lines([])) == []
