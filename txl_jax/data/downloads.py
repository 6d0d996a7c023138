"""Files of corpora: found or downloaded, verified, and read from archives."""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import pathlib
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

from txl_jax.errors import InputError

Say = Callable[[str], None]
# Reads a file from its beginning, in blocks.
Read = Callable[[], Iterator[bytes]]
BLOCK = 1 << 20
SECONDS_WITHOUT_DATA = 60
BLOCKS_PER_LINE_OF_PROGRESS = 100
# What broken archives make the standard library raise.
BROKEN_ZIP = (
  zipfile.BadZipFile,
  zlib.error,
  EOFError,
  OSError,
  ValueError,
  NotImplementedError,
  RuntimeError,
)
BROKEN_TAR = (tarfile.TarError, zlib.error, EOFError, ValueError)


@dataclasses.dataclass(frozen=True)
class File:
  """A file of a corpus, alone or in an archive.

  Attributes:
    path: in its archive; the last part is its name elsewhere.
    checksum: `md5:` or `sha256:` and hexadecimal digits; '' = none published.
    urls: tried in this order.
    n_tokens: words and line ends, where there is no checksum.
  """

  path: str
  checksum: str = ''
  urls: tuple[str, ...] = ()
  n_tokens: int | None = None

  @property
  def name(self) -> str:
    return self.path.rpartition('/')[-1]


def find(file: File, manual_dir: str) -> pathlib.Path | None:
  """A file as it was put, or unpacked, into `manual_dir`; None if it was not.

  Raises:
    InputError: if `manual_dir` is not empty and no folder.
  """
  if not manual_dir:
    return None
  folder = pathlib.Path(manual_dir)
  if not folder.is_dir():
    raise InputError(
      f'config.data.manual_dir must be a folder, found {manual_dir!r}'
    )
  paths = (folder / file.path, folder / file.name)
  return next((path for path in paths if path.is_file()), None)


def find_or_download(
  file: File, manual_dir: str, folder: pathlib.Path, say: Say
) -> pathlib.Path:
  """Finds a file in `manual_dir`, or downloads it into `folder`.

  Args:
    file: with a URL.
    manual_dir: where the user put files; '' = nowhere.
    folder: for downloads; what an interrupted one wrote is deleted.
    say: receives lines of progress.

  Returns:
    The path of the file. A checksum, if there is one, has been verified.

  Raises:
    InputError: naming the checksums if they differ; or, if a download fails,
      what to fetch and where to put it.
  """
  path = find(file, manual_dir)
  if path is None:
    path = folder / file.name
    if not path.is_file():
      return _download(file, manual_dir, path, say)
  verify(file, path)
  return path


def missing(file: File, manual_dir: str, why: str = '') -> InputError:
  """The error that says which file to put where."""
  folder = manual_dir or 'a folder'
  where = f'put it into {folder}'
  if not manual_dir:
    where += ' and set config.data.manual_dir to that folder'
  place = f'config.data.manual_dir ({manual_dir!r})'
  return InputError(
    f'{file.name} is not in {place}{why}; fetch {file.urls[0]} and {where}'
  )


def verify(file: File, path: pathlib.Path, read: Read | None = None) -> None:
  """Compares a file with its checksum, or else its number of tokens.

  Args:
    file: what is expected.
    path: for the message.
    read: reads the content; None = that of the file at `path`.

  Raises:
    InputError: naming the file, what was found and what was expected.
  """
  blocks = (read or read_file(path))()
  if file.checksum:
    kind, _, expected = file.checksum.partition(':')
    digest = hashlib.new(kind, usedforsecurity=False)
    for block in blocks:
      digest.update(block)
    if digest.hexdigest() != expected:
      raise InputError(
        f'{path} has the {kind} checksum {digest.hexdigest()}, expected '
        f'{expected}'
      )
  elif file.n_tokens is not None:
    found = sum(
      len(text.split()) + text.count(b'\n') for text in cut_at_lines(blocks)
    )
    if found != file.n_tokens:
      raise InputError(
        f'{path} has {found:,} words and line ends, expected {file.n_tokens:,}'
      )


def read_file(path: pathlib.Path) -> Read:
  """A function that reads the file at `path`."""

  def read() -> Iterator[bytes]:
    with path.open('rb') as file:
      while block := file.read(BLOCK):
        yield block

  return read


def cut_at_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
  """The same bytes in chunks of at most `BLOCK` that end lines, if any do."""
  rest = b''
  for block in blocks:
    rest += block
    while len(rest) > BLOCK:
      end = rest.rfind(b'\n', 0, BLOCK) + 1 or BLOCK
      yield rest[:end]
      rest = rest[end:]
  if rest:
    yield rest


@contextlib.contextmanager
def open_archive(
  path: pathlib.Path, names: Iterable[str], scratch: pathlib.Path
) -> Iterator[dict[str, Read]]:
  """Opens members of an archive: of a zip, or a tar compressed with gzip.

  Args:
    path: of the archive; the suffix says which it is.
    names: of members.
    scratch: where the members of a tar lie, in a nameless file, meanwhile,
      since a tar can only be read from its beginning.

  Yields:
    For each name a function that reads the member.

  Raises:
    InputError: if the archive is broken, lacks a member, or has one whose name
      leads out of the folder that it would be unpacked into.
  """
  opened = _open_zip if path.suffix == '.zip' else _open_tar
  with opened(path, tuple(names), scratch) as members:
    yield members


@contextlib.contextmanager
def _broken(
  path: pathlib.Path, errors: tuple[type[Exception], ...]
) -> Iterator[None]:
  try:
    yield
  except InputError:
    raise
  except errors as error:
    raise InputError(f'{path} is not a whole archive: {error}') from error


@contextlib.contextmanager
def _open_zip(
  path: pathlib.Path, names: tuple[str, ...], scratch: pathlib.Path
) -> Iterator[dict[str, Read]]:
  with contextlib.ExitStack() as stack:
    with _broken(path, BROKEN_ZIP):
      archive = stack.enter_context(zipfile.ZipFile(path))
    _check_names(path, archive.namelist())
    _require(path, names, archive.namelist())

    def read(name: str) -> Iterator[bytes]:
      with _broken(path, BROKEN_ZIP), archive.open(name) as file:
        while block := file.read(BLOCK):
          yield block

    yield {name: lambda name=name: read(name) for name in names}


@contextlib.contextmanager
def _open_tar(
  path: pathlib.Path, names: tuple[str, ...], scratch: pathlib.Path
) -> Iterator[dict[str, Read]]:
  # It has no name, so that nothing is left however the process ends.
  with tempfile.TemporaryFile(dir=scratch) as spool:
    places: dict[str, tuple[int, int]] = {}
    with _broken(path, BROKEN_TAR), tarfile.open(path, 'r|gz') as archive:
      for member in archive:
        _check_names(path, [member.name])
        if member.name in names and member.isreg():
          places[member.name] = (spool.tell(), member.size)
          source = archive.extractfile(member)
          while block := source.read(BLOCK):
            spool.write(block)
    _require(path, names, places)

    def read(begin: int, size: int) -> Iterator[bytes]:
      for at in range(begin, begin + size, BLOCK):
        spool.seek(at)
        yield spool.read(min(BLOCK, begin + size - at))

    yield {name: lambda name=name: read(*places[name]) for name in names}


def _check_names(path: pathlib.Path, names: Iterable[str]) -> None:
  for name in names:
    # Windows' rules, since they are those of POSIX and more.
    parts = pathlib.PureWindowsPath(name)
    if parts.anchor or '..' in parts.parts:
      raise InputError(
        f'{path} has a member {name!r}, expected only paths that stay below '
        'the folder that they are unpacked into'
      )


def _require(path: pathlib.Path, names: Iterable[str], found: Iterable) -> None:
  if lacking := sorted(set(names).difference(found)):
    raise InputError(f'{path} lacks {lacking[0]!r}, expected among its members')


def _download(
  file: File, manual_dir: str, path: pathlib.Path, say: Say
) -> pathlib.Path:
  reasons = []
  for url in file.urls:
    say(f'Downloading {url}')
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = pathlib.Path(folder) / path.name
        _receive(url, part, say)
        verify(file, part)
        os.replace(part, path)
      return path
    except (OSError, InputError, http.client.HTTPException) as error:
      reasons.append(str(error))
  why = f', and downloading it failed ({"; ".join(reasons)})'
  raise missing(file, manual_dir, why)


def _receive(url: str, path: pathlib.Path, say: Say) -> None:
  # Some servers refuse what calls itself urllib.
  headers = {'User-Agent': 'Mozilla/5.0 (txl_jax)'}
  request = urllib.request.Request(url, headers=headers)
  timeout = SECONDS_WITHOUT_DATA
  with urllib.request.urlopen(request, timeout=timeout) as answer:
    total, n_blocks, size = answer.headers['Content-Length'], 0, 0
    with path.open('wb') as file:
      while block := answer.read(BLOCK):
        file.write(block)
        size, n_blocks = size + len(block), n_blocks + 1
        if n_blocks % BLOCKS_PER_LINE_OF_PROGRESS == 0:
          say(f'{path.name}: {size:,} of {int(total or 0):,} bytes')
  if total and size != int(total):
    raise OSError(f'{url} ended after {size:,} of {total} bytes')
