"""Checksums of a folder: whether its files are still what was written.

Orbax finds some damage by itself, but not all of it, and not quietly.
"""

import hashlib
import json
import pathlib

from txl_jax.training.workdir import write_json

NAME = 'checksums.json'


def write_checksums(folder: pathlib.Path) -> None:
  """Records size and SHA-256 of each file below a folder."""
  write_json(folder / NAME, _checksums(folder))


def find_damage(folder: pathlib.Path) -> str | None:
  """What differs from the record, in words; None if nothing does."""
  try:
    expected = dict(json.loads((folder / NAME).read_text()))
  except (OSError, ValueError, TypeError):
    expected = {}
  if not expected:
    return f'{NAME} is missing or unreadable'
  found = _checksums(folder)
  for name, wanted in expected.items():
    if name not in found:
      return f'{name} is missing'
    if found[name] != wanted:
      size = found[name]['bytes']
      return f'{name} is not as it was written (it has {size} bytes now)'
  return None


def _checksums(folder: pathlib.Path) -> dict[str, dict]:
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  return {
    path.relative_to(folder).as_posix(): _checksum(path)
    for path in files
    if path.name != NAME
  }


def _checksum(path: pathlib.Path) -> dict:
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'bytes': path.stat().st_size, 'sha256': digest}
