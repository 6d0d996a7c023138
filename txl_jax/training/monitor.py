"""What validation has found so far."""

import dataclasses
import math


@dataclasses.dataclass
class Monitor:
  """The best validation, and how long ago it was.

  Attributes:
    best: the lowest loss, nats per token.
    best_step: its step.
    waited: validations since then.
  """

  best: float = math.inf
  best_step: int = -1
  waited: int = 0

  def after(self, step: int, loss: float) -> bool:
    """Adds a validation; whether it is the best one."""
    improved = loss < self.best
    if improved:
      self.best, self.best_step = loss, step
    self.waited = 0 if improved else self.waited + 1
    return improved

  def has_waited(self, validations: int | None) -> bool:
    """Whether so many validations have passed without a better one."""
    return validations is not None and self.waited >= validations

  def to_json(self) -> dict:
    """What `from_json` reads."""
    best = None if math.isinf(self.best) else self.best
    return {**dataclasses.asdict(self), 'best': best}

  @classmethod
  def from_json(cls, values: dict) -> 'Monitor':
    """The inverse of `to_json`."""
    best = math.inf if values['best'] is None else values['best']
    return cls(**{**values, 'best': best})
