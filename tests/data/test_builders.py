"""The paper's corpora: exact bytes, and an error for each thing amiss."""

import dataclasses
import hashlib
import io
import pathlib
import random
import tarfile
import urllib.error
import urllib.request
import zipfile

import pytest

from txl_jax.data import builders, downloads
from txl_jax.data.builders import SOURCES, read_corpus
from txl_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')
SIZES = (900, 53, 47)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  def urlopen(request, timeout):
    raise urllib.error.URLError('no network in tests')

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Several chunks for each file, and several shards for each split."""
  monkeypatch.setattr(downloads, 'BLOCK', 64)
  monkeypatch.setattr(builders, 'CHUNKS_PER_SHARD', 3)
  monkeypatch.setattr(builders, 'CHUNKS_AT_ONCE', 2)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  path = tmp_path / 'manual'
  path.mkdir()
  return path


def _lines(seed: int, n_lines: int) -> bytes:
  words = random.Random(seed).sample(['a', 'bc', '<unk>', '@-@', 'é'], 5)
  return b''.join(
    ' '.join(['', *words[: 1 + i % 5], '\n']).encode() for i in range(n_lines)
  )


def _checksum(content: bytes, kind: str = 'md5') -> str:
  return f'{kind}:{hashlib.new(kind, content).hexdigest()}'


def _packed(name: str, contents: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  if name == 'lm1b':
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
      for path, content in contents.items():
        member = tarfile.TarInfo(path)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  else:
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
      for path, content in contents.items():
        archive.writestr(path, content)
  return buffer.getvalue()


def _patch(monkeypatch, name: str, **fields) -> None:
  source = dataclasses.replace(SOURCES[name], **fields)
  monkeypatch.setitem(SOURCES, name, source)


def _contents(name: str) -> dict[str, bytes]:
  """Path -> content of each file of a corpus."""
  if SOURCES[name].sizes:
    return {name: _lines(1, 200)[: sum(SIZES)]}
  files = [file for files in SOURCES[name].files.values() for file in files]
  return {
    file.path: _lines(seed, 23 - seed % 2 * 20)
    for seed, file in enumerate(files)
  }


def _make(monkeypatch, folder, name: str) -> dict[str, bytes]:
  """Writes a corpus, and its checksums into the table; returns its splits."""
  contents, source = _contents(name), SOURCES[name]
  if source.archive is None:
    for path, content in contents.items():
      (folder / path).write_bytes(content)
  else:
    # Not in the order in which they are read.
    packed = _packed(name, dict(reversed(contents.items())))
    (folder / source.archive.name).write_bytes(packed)
    if source.archive.checksum:
      kind = source.archive.checksum.partition(':')[0]
      checksum = _checksum(packed, kind)
      archive = dataclasses.replace(source.archive, checksum=checksum)
      _patch(monkeypatch, name, archive=archive)
  if source.sizes or source.archive is None:
    files = {
      split: tuple(
        dataclasses.replace(file, checksum=_checksum(contents[file.path]))
        for file in files
      )
      for split, files in source.files.items()
    }
    _patch(monkeypatch, name, files=files)
  if source.sizes:
    _patch(monkeypatch, name, sizes=SIZES)
    [text] = contents.values()
    assert len(text) == 1000
    return dict(zip(SPLITS, (text[:900], text[900:953], text[953:])))
  return {
    split: b''.join(contents[file.path] for file in files)
    for split, files in source.files.items()
  }


def _read(name: str, manual_dir, data_dir, say=lambda line: None):
  splits = read_corpus(
    name, manual_dir=str(manual_dir), data_dir=str(data_dir), say=say
  )
  return {split: list(chunks) for split, chunks in splits.items()}


def _joined(splits: dict[str, list[bytes]]) -> dict[str, bytes]:
  return {split: b''.join(chunks) for split, chunks in splits.items()}


def _files(folder: pathlib.Path) -> set[str]:
  """Files that are left, without the names of TFDS's configurations."""
  files = (path for path in folder.rglob('*') if path.is_file())
  return {path.name for path in files} - {'metadata.json'}


def _error(name: str, manual_dir, tmp_path) -> str:
  """The one sentence of an error, which leaves nothing behind."""
  with pytest.raises(InputError) as error:
    _read(name, manual_dir, tmp_path / 'data')
  assert not _files(tmp_path / 'data')
  return str(error.value)


@pytest.mark.parametrize('name', SOURCES)
def test_exact_bytes(monkeypatch, folder, tmp_path, name, capsys):
  expected = _make(monkeypatch, folder, name)
  found = _read(name, folder, tmp_path / 'data')
  assert list(found) == list(SPLITS)
  assert _joined(found) == expected
  assert len(list(tmp_path.rglob('*-train.array_record-*'))) > 1
  assert capsys.readouterr().out == ''


def test_lm1b_leaves_out_the_held_out_shard():
  names = [file.name for file in SOURCES['lm1b'].files['train']]
  assert names[0] == 'news.en-00001-of-00100'
  assert names[-1] == 'news.en-00099-of-00100'
  assert len(names) == 99
  held_out = 'news.en.heldout-0000{}-of-00050'.format
  assert SOURCES['lm1b'].files['validation'][0].name == held_out(1)
  assert SOURCES['lm1b'].files['test'][0].name == held_out(0)


def test_real_penn_treebank(monkeypatch, data_dir, tmp_path):
  monkeypatch.setattr(downloads, 'BLOCK', 1 << 20)
  found = _read('ptb', data_dir / 'ptb', tmp_path)
  for split, name in zip(SPLITS, ('train', 'valid', 'test')):
    text = (data_dir / 'ptb' / f'ptb.{name}.txt').read_bytes()
    assert b''.join(found[split]) == text
    assert all(chunk.endswith(b'\n') for chunk in found[split])
  assert max(map(len, found['train'])) <= 1 << 20
  assert len(found['train']) == 5


@pytest.mark.parametrize('name', ['enwik8', 'text8'])
def test_unpacked_file(monkeypatch, folder, tmp_path, name):
  expected = _make(monkeypatch, folder, name)
  with zipfile.ZipFile(folder / f'{name}.zip') as archive:
    archive.extractall(folder)
  (folder / f'{name}.zip').unlink()
  assert _joined(_read(name, folder, tmp_path / 'data')) == expected


@pytest.mark.parametrize('in_a_folder', [False, True])
def test_unpacked_wikitext(monkeypatch, folder, tmp_path, in_a_folder):
  files, expected = {}, {}
  for seed, (split, (file,)) in enumerate(SOURCES['wikitext2'].files.items()):
    path = folder / (file.path if in_a_folder else file.name)
    path.parent.mkdir(exist_ok=True)
    expected[split] = text = _lines(seed, 20)
    path.write_bytes(text)
    n_tokens = len(text.split()) + 20
    files[split] = (dataclasses.replace(file, n_tokens=n_tokens),)
  _patch(monkeypatch, 'wikitext2', files=files)
  assert _joined(_read('wikitext2', folder, tmp_path / 'data')) == expected
  # The larger one's files have the same names.
  error = _error('wikitext103', folder, tmp_path / 'other')
  if in_a_folder:
    assert 'wikitext-103-v1.zip is not in' in error
  else:
    assert (
      'wiki.train.tokens has 80 words and line ends, expected 103,' in error
    )


def test_prepared_twice_needs_no_source(monkeypatch, folder, tmp_path):
  expected = _make(monkeypatch, folder, 'ptb')
  said = []
  _read('ptb', folder, tmp_path / 'data', said.append)
  assert 'Copying the train split' in said
  for path in folder.iterdir():
    path.unlink()
  said.clear()
  assert _joined(_read('ptb', '', tmp_path / 'data', said.append)) == expected
  assert not said


@pytest.mark.parametrize('name', SOURCES)
def test_another_checksum(monkeypatch, folder, tmp_path, name):
  _make(monkeypatch, folder, name)
  path = min(folder.iterdir())
  # The checksum is that of what is in the archive, where none is published.
  other = _packed(name, {name: b'x'}) if SOURCES[name].sizes else b'x'
  path.write_bytes(other)
  kind = 'sha256' if name == 'lm1b' else 'md5'
  found = hashlib.new(kind, b'x').hexdigest()
  error = _error(name, folder, tmp_path)
  assert error.startswith(str(path))
  assert f' has the {kind} checksum {found}, expected ' in error


@pytest.mark.parametrize('name', SOURCES)
def test_missing_files(folder, tmp_path, name):
  source = SOURCES[name]
  file = source.archive or source.files['train'][0]
  error = _error(name, folder, tmp_path)
  assert error == (
    f"{file.name} is not in config.data.manual_dir ('{folder}'), and "
    'downloading it failed (<urlopen error no network in tests>); fetch '
    f'{file.urls[0]} and put it into {folder}'
  )
  error = _error(name, '', tmp_path)
  assert error.endswith(
    f'fetch {file.urls[0]} and put it into a folder and set '
    'config.data.manual_dir to that folder'
  )


def test_data_dir_cannot_be_written(monkeypatch, folder, tmp_path):
  _make(monkeypatch, folder, 'ptb')
  (tmp_path / 'data').write_text('')
  with pytest.raises(InputError, match="'ptb' cannot be prepared in .*/data: "):
    _read('ptb', folder, tmp_path / 'data')


def test_unknown_corpus(tmp_path):
  with pytest.raises(InputError, match=r'one of enwik8, .*, found .pg19.'):
    _read('pg19', '', tmp_path)


@pytest.mark.parametrize('name', ['enwik8', 'lm1b', 'ptb'])
def test_interruption_leaves_nothing(monkeypatch, folder, tmp_path, name):
  expected = _make(monkeypatch, folder, name)

  def say(line: str) -> None:
    if line == 'Copying the test split':
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _read(name, folder, tmp_path / 'data', say)
  assert not _files(tmp_path / 'data')
  assert _joined(_read(name, folder, tmp_path / 'data')) == expected


def test_another_process_is_faster(monkeypatch, folder, tmp_path):
  expected = _make(monkeypatch, folder, 'ptb')

  def say(line: str) -> None:
    if line == 'Copying the test split':
      _read('ptb', folder, tmp_path / 'data')

  assert _joined(_read('ptb', folder, tmp_path / 'data', say)) == expected


@pytest.mark.parametrize('text', [None, 'x'])
def test_damaged_after_preparation(monkeypatch, folder, tmp_path, text):
  _make(monkeypatch, folder, 'ptb')
  _read('ptb', folder, tmp_path / 'data')
  shard = max(tmp_path.rglob('*-train.array_record-*'))
  shard.unlink() if text is None else shard.write_text(text)
  with pytest.raises(
    InputError, match=r'/ptb/1.0.0 is not what was prepared; '
  ):
    _read('ptb', folder, tmp_path / 'data')
