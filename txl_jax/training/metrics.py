"""Metrics on disk: JSON lines, and whoever else listens."""

import json
import pathlib
from collections.abc import Callable

from txl_jax.errors import InputError, TrainingError
from txl_jax.training.workdir import write_text


class MetricsFile:
  """`metrics.jsonl`: one object a line, each step of a split once."""

  def __init__(self, path: pathlib.Path, *, writing: bool = True):
    """Opens the file.

    Args:
      path: of the file.
      writing: whether this process writes it; others only read.
    """
    self._path = path
    self._writing = writing
    self.listeners: list[Callable[[dict], None]] = []

  def append(self, **values: float | int | str | dict) -> None:
    """Adds a line.

    Raises:
      TrainingError: if the disk is full or cannot be written.
    """
    if not self._writing:
      return
    try:
      with self._path.open('a') as file:
        file.write(json.dumps(values) + '\n')
    except OSError as error:
      raise TrainingError(
        f'cannot write {self._path}: {error.strerror}; the last checkpoint is '
        'intact'
      ) from error
    for listener in self.listeners:
      listener(values)

  def drop_after(self, step: int) -> None:
    """Drops the lines of later steps: the run goes on from this one."""
    if not self._writing:
      return
    lines = [line for line in self.read() if line['step'] <= step]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    write_text(self._path, text)

  def read(self) -> list[dict]:
    """All lines; a last one that was cut off while writing is left out."""
    if not self._path.exists():
      return []
    lines = self._path.read_text().split('\n')
    return [self._parse(i, line) for i, line in enumerate(lines[:-1], 1)]

  def _parse(self, number: int, line: str) -> dict:
    try:
      return {'step': 0, **json.loads(line)}
    except (ValueError, TypeError) as error:
      raise InputError(
        f'{self._path}, line {number}: expected a JSON object, found '
        f'{line[:60]!r}'
      ) from error
