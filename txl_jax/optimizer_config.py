"""The optimizer's section of the configuration."""

import dataclasses
from typing import Literal

from txl_jax.checks import (
  above_zero,
  at_least,
  fraction,
  inside,
  patterns,
  require,
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer, learning rate, clipping, groups of parameters, and averages.

  A pattern is a regular expression that must match the whole path of a
  parameter, such as `layers/attention/query`.
  """

  # Their update rules stand in training/optimizer.py.
  name: Literal['adam', 'lamb', 'sgd', 'adamw', 'adafactor', 'muon'] = 'adam'
  learning_rate: float = 2.5e-4
  # Where cosine and linear end; the least of inverse_square_root and plateau.
  final_learning_rate: float = 0.0
  # 'cosine' decays from the end of the warm-up on; 'cosine_official' from step
  # 0 on, the warm-up overriding it, as the paper's PyTorch code does.
  schedule: Literal[
    'cosine',
    'cosine_official',
    'linear',
    'inverse_square_root',
    'constant',
    'plateau',
  ] = 'cosine'
  warmup_steps: int = 0
  b1: float = 0.9  # momentum, with sgd
  b2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float | None = 0.25  # of all gradients together
  warmup_tokens: int | None = None  # instead of warmup_steps
  # The rate is multiplied by the factor each time that so many validations in a
  # row were not the best so far.
  plateau_factor: float = 0.5
  plateau_patience: int = 1
  weight_decay: float = 0.0
  undecayed: tuple[str, ...] = ('.*bias', '.*norm/scale')  # patterns
  # (pattern, factor of the learning rate); the first that matches counts.
  rate_factors: tuple[tuple[str, float], ...] = ()
  frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained
  # What is evaluated: the newest parameters, their exponential moving average,
  # or the mean of those after each update in the last part of the run.
  average: Literal['none', 'ema', 'tail'] = 'none'
  average_decay: float = 0.999  # of ema
  average_last_fraction: float = 0.25  # of the run, for tail

  def __post_init__(self):
    # Lists would not be hashable.
    pairs = tuple((pattern, factor) for pattern, factor in self.rate_factors)
    object.__setattr__(self, 'rate_factors', pairs)
    object.__setattr__(self, 'undecayed', tuple(self.undecayed))
    object.__setattr__(self, 'frozen', tuple(self.frozen))
    above_zero(self, 'learning_rate epsilon clip_norm')
    at_least(self, 0, 'final_learning_rate warmup_steps warmup_tokens')
    at_least(self, 0, 'weight_decay')
    at_least(self, 1, 'plateau_patience')
    fraction(self, 'b1 b2')
    inside(self, 'plateau_factor average_decay')
    part = 0 < self.average_last_fraction <= 1
    require(part, self, 'average_last_fraction', 'in (0, 1]')
    self._check_groups()

  def _check_groups(self) -> None:
    patterns(self, 'undecayed', self.undecayed)
    patterns(self, 'frozen', self.frozen)
    patterns(self, 'rate_factors', tuple(p for p, _ in self.rate_factors))
    positive = all(factor > 0 for _, factor in self.rate_factors)
    expected = (
      'made of factors above 0 (frozen parameters have their own field)'
    )
    require(positive, self, 'rate_factors', expected)
