"""Sums over the steps since the last line of metrics."""

import math
import time

import jax

from txl_jax.errors import TrainingError
from txl_jax.parallel import processes

SUMS = {'loss': 0.0, 'tokens': 0, 'characters': 0, 'skipped': 0, 'in_a_row': 0}


class Meter:
  """Sums of the steps since the last line.

  Device values are kept as they come and fetched when the line is due, so that
  adding a step never waits for the device.
  """

  def __init__(self, sums: dict | None = None, *, most_skipped: int = 1):
    """Starts from the sums of a checkpoint, or from nothing.

    Args:
      sums: as `sums` gave them.
      most_skipped: so many skipped steps in a row end the run.
    """
    self._sums = {**SUMS, **(sums or {})}
    self._most_skipped = most_skipped
    self._pending: list[tuple[int, dict, list[dict]]] = []
    self._norms: dict = {}
    self._parameter_norms: dict = {}
    self._read = 0
    self.skipped: list[dict] = []
    self.start()

  def start(self) -> None:
    """Starts the clock."""
    self._started = time.monotonic()

  def add(self, first: int, metrics: dict, counts: list[dict]) -> None:
    """Adds the steps of one call.

    Args:
      first: number of the first of them.
      metrics: on the device; with a leading axis if there are several.
      counts: for each its `tokens` in the loss, this process's share of the
        `characters` that those stand for, and tokens `read`, in the loss or
        not, for the speed.
    """
    self._pending.append((first, metrics, counts))
    self._read += sum(count['read'] for count in counts)

  def add_parameter_norms(self, norms: dict) -> None:
    """Keeps the norms of the parameters after the last step, by group."""
    self._parameter_norms = norms

  def skip_time(self, since: float) -> None:
    """Leaves the time since then (`time.monotonic`) out of the speed."""
    self._started += time.monotonic() - since

  def follow(self, meter: 'Meter') -> None:
    """Goes on where another meter's line ended, which must have been made."""
    self._started = meter.ended
    for name in ('skipped', 'in_a_row'):
      self._sums[name] = meter._sums[name]

  def sums(self) -> dict:
    """The sums so far; waits for the device.

    Raises:
      TrainingError: naming the first step of too many in a row whose loss or
        gradient is not finite, and the parameters concerned.
    """
    pending, self._pending = self._pending, []
    characters = 0.0
    for first, metrics, counts in pending:
      metrics = jax.device_get(metrics)
      for i, count in enumerate(counts):
        if self._add(first + i, _one(metrics, i), count):
          characters += count['characters']
    self._sums['characters'] += round(processes.total(characters))
    return dict(self._sums)

  def _add(self, step: int, metrics: dict, count: dict) -> bool:
    """Whether the step counts."""
    sums = self._sums
    if metrics['skipped']:
      self._skip(step, metrics)
      return False
    sums['in_a_row'] = 0
    sums['loss'] += float(metrics['loss_sum'])
    sums['tokens'] += count['tokens']
    self._norms = {'all': float(metrics['gradient_norm'])}
    for name, norm in metrics['gradient_norms'].items():
      self._norms[name] = float(norm)
    return True

  def _skip(self, step: int, metrics: dict) -> None:
    norms = metrics['gradient_norms']
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    loss = float(metrics['loss_sum'])
    self.skipped.append({'step': step, 'loss': str(loss), 'groups': broken})
    self._sums['skipped'] += 1
    self._sums['in_a_row'] += 1
    if self._sums['in_a_row'] >= self._most_skipped:
      raise TrainingError(
        f'step {step:,} is the last of {self._sums["in_a_row"]} in a row with '
        f'a loss or gradient that is not finite: the loss sum is {loss}, the '
        f'gradient is broken in {", ".join(broken) or "no group"}; the last '
        'checkpoint is intact: lower config.optimizer.learning_rate or raise '
        'config.optimizer.warmup_steps'
      )

  def line(self) -> dict:
    """Loss in nats per token, bits per character, norms and speed."""
    sums = self.sums()
    self.ended = time.monotonic()
    line = {'skipped': sums['skipped']} if sums['skipped'] else {}
    if sums['tokens']:
      line['loss'] = round(sums['loss'] / sums['tokens'], 6)
      bits = sums['loss'] / math.log(2) / sums['characters']
      line['bpc'] = round(bits, 6)
      line['gradient_norm'] = round(self._norms.pop('all'), 6)
      line['gradient_norms'] = _rounded(self._norms)
      line['parameter_norms'] = _rounded(jax.device_get(self._parameter_norms))
    line['tokens_per_second'] = round(
      self._read / (self.ended - self._started), 1
    )
    return line


def _one(metrics: dict, i: int) -> dict:
  """The metrics of step i of a call that may have taken several."""
  return jax.tree.map(lambda x: x[i] if x.ndim else x, metrics)


def _rounded(norms: dict) -> dict:
  return {name: round(float(norm), 6) for name, norm in norms.items()}
