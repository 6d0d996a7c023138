"""Metrics: sums and counts on the device, JSON lines on disk."""

import json
import math
import pathlib
import time

import jax

from txl_jax.errors import InputError, TrainingError
from txl_jax.training.workdir import write_text


class Meter:
  """Sums of the steps since the last line.

  Device values are kept as they come and fetched when the line is due, so that
  adding a step never waits for the device.
  """

  def __init__(self, sums: dict | None = None):
    self._sums = sums or {'loss': 0.0, 'tokens': 0, 'characters': 0}
    self._pending: list[tuple[int, dict]] = []
    self._gradient_norm = math.nan
    self._read = 0
    self.start()

  def start(self) -> None:
    """Starts the clock."""
    self._started = time.monotonic()

  def add(
    self, step: int, metrics: dict, tokens: int, characters: int, read: int
  ) -> None:
    """Adds a step.

    Args:
      step: its number.
      metrics: on the device.
      tokens: targets in the loss.
      characters: those of them that are text.
      read: tokens read, in the loss or not, for the speed.
    """
    self._pending.append((step, metrics))
    self._sums['tokens'] += tokens
    self._sums['characters'] += characters
    self._read += read

  def skip_time(self, since: float) -> None:
    """Leaves the time since then (`time.monotonic`) out of the speed."""
    self._started += time.monotonic() - since

  def follow(self, meter: 'Meter') -> None:
    """Starts the clock where another meter's line ended."""
    self._started = meter.ended

  def sums(self) -> dict:
    """The sums so far; waits for the device.

    Raises:
      TrainingError: naming the first step whose loss or gradient is not finite.
    """
    for step, metrics in jax.device_get(self._pending):
      loss, norm = float(metrics['loss_sum']), float(metrics['gradient_norm'])
      if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
          f'step {step} has the loss sum {loss} and the gradient norm {norm}; '
          'the last checkpoint is intact: lower config.optimizer.learning_rate '
          'or raise config.optimizer.warmup_steps'
        )
      self._sums['loss'] += loss
      self._gradient_norm = norm
    self._pending.clear()
    return dict(self._sums)

  def line(self) -> dict:
    """Loss in nats per token, bits per character, norm and speed."""
    sums = self.sums()
    self.ended = time.monotonic()
    seconds = self.ended - self._started
    return {
      'loss': round(sums['loss'] / sums['tokens'], 6),
      'bpc': round(sums['loss'] / math.log(2) / sums['characters'], 6),
      'gradient_norm': round(self._gradient_norm, 6),
      'tokens_per_second': round(self._read / seconds, 1),
    }


class MetricsFile:
  """`metrics.jsonl`: one object a line, each step of a split once."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def append(self, **values: float | int | str) -> None:
    """Adds a line."""
    with self._path.open('a') as file:
      file.write(json.dumps(values) + '\n')

  def drop_after(self, step: int) -> None:
    """Drops the lines of later steps: the run goes on from this one."""
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
