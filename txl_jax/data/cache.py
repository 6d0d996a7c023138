"""Prepared corpora on disk: ids that are mapped into memory, and checksums.

A folder holds `train.bin`, `validation.bin` and `test.bin` (little-endian ids),
`vocabulary.json`, and `corpus.json` with the sizes and checksums of the others.
It is written under another name and renamed when it is whole.
"""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

from txl_jax.data.splits import SPLITS
from txl_jax.data.vocabulary import (
  Vocabulary,
  id_type,
  vocabulary_from_json,
)
from txl_jax.errors import InputError

SUMMARY = 'corpus.json'


def write_cache(
  folder: pathlib.Path,
  name: str,
  vocabulary: Vocabulary,
  splits: dict[str, Iterable[np.ndarray]],
  progress: Callable[[str, int], None],
) -> None:
  """Writes a corpus; nothing is left behind if that fails.

  Args:
    folder: its final place, which does not exist yet.
    name: what the text is, for people.
    vocabulary: made the ids.
    splits: for each split its ids, in parts.
    progress: is told split and tokens so far after each part.

  Raises:
    InputError: if the disk is full or cannot be written.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent)
  except OSError as error:
    raise InputError(
      f'config.data.cache_dir: cannot write {folder.parent}: {error.strerror}'
    ) from error
  try:
    _write(pathlib.Path(part), name, vocabulary, splits, progress)
    _rename(pathlib.Path(part), folder)
  except OSError as error:
    raise InputError(
      f'config.data.cache_dir: cannot write {folder}: {error.strerror}'
    ) from error
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _write(
  folder: pathlib.Path,
  name: str,
  vocabulary: Vocabulary,
  splits: dict[str, Iterable[np.ndarray]],
  progress: Callable[[str, int], None],
) -> None:
  kind = np.dtype(id_type(vocabulary.size)).newbyteorder('<')
  sizes, checksums = {}, {}
  for split in SPLITS:
    path, n_tokens = folder / f'{split}.bin', 0
    with path.open('wb') as file:
      for ids in splits[split]:
        file.write(ids.astype(kind).tobytes())
        n_tokens += len(ids)
        progress(split, n_tokens)
    sizes[split] = n_tokens
  (folder / 'vocabulary.json').write_text(vocabulary.to_json())
  for path in sorted(folder.iterdir()):
    checksums[path.name] = _checksum(path)
  summary = {'name': name, 'tokens': sizes, 'sha256': checksums}
  (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + '\n')


def _rename(part: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    os.rename(part, folder)
  except OSError:
    # Another process was faster: its folder is as good.
    if not (folder / SUMMARY).exists():
      raise


def read_cache(
  folder: pathlib.Path,
) -> tuple[str, Vocabulary, dict[str, np.ndarray]] | None:
  """Name, vocabulary and ids of a prepared corpus; None if there is none.

  The ids are mapped into memory, not read.

  Raises:
    InputError: naming a file that is not what was written.
  """
  if not (folder / SUMMARY).exists():
    return None
  try:
    summary = json.loads((folder / SUMMARY).read_text())
    for name, expected in summary['sha256'].items():
      if _checksum(folder / name) != expected:
        raise InputError(_damaged(folder / name))
    vocabulary = vocabulary_from_json((folder / 'vocabulary.json').read_text())
    kind = np.dtype(id_type(vocabulary.size)).newbyteorder('<')
    tokens = {
      split: np.memmap(folder / f'{split}.bin', kind, 'r') for split in SPLITS
    }
    return summary['name'], vocabulary, tokens
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise InputError(_damaged(folder / SUMMARY)) from error


def _damaged(path: pathlib.Path) -> str:
  return (
    f'{path} is not what was prepared; delete {path.parent} and run `txl '
    'prepare` again'
  )


def _checksum(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
