"""The parts of a configuration that say how training goes."""

import dataclasses
from typing import Literal

from txl_jax.checks import above_zero, at_least, fraction, require


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer, learning rate, clipping, and averages of the parameters."""

  name: Literal['adam', 'adamw', 'lamb', 'adafactor', 'sgd', 'muon'] = 'adam'
  learning_rate: float = 2.5e-4
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
  warmup_tokens: int | None = None  # instead of warmup_steps
  plateau_factor: float = 0.5  # the rate falls to this part
  plateau_patience: int = 0  # after more than so many validations
  b1: float = 0.9  # momentum, with sgd
  b2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float | None = 0.25
  weight_decay: float = 0.0  # not of biases and layer norms
  # Regular expressions for whole paths of parameters: (('embedding/.*', 0.1),).
  rate_factors: tuple[tuple[str, float], ...] = ()
  frozen: tuple[str, ...] = ()
  # Averages are evaluated instead of the parameters.
  average: Literal['none', 'ema', 'tail'] = 'none'
  average_decay: float = 0.999  # of ema
  average_last_fraction: float = 0.25  # of the run, for tail

  def __post_init__(self):
    for name in ('rate_factors', 'frozen'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    above_zero(self, 'learning_rate epsilon clip_norm')
    at_least(self, 0, 'final_learning_rate warmup_steps warmup_tokens')
    at_least(self, 0, 'weight_decay plateau_patience')
    fraction(self, 'b1 b2 average_decay')
    for name in ('plateau_factor', 'average_last_fraction'):
      require(0 < getattr(self, name) <= 1, self, name, 'in (0, 1]')
    plain = self.name == 'adam' and self.weight_decay
    require(not plain, self, 'weight_decay', "0 with adam (see 'adamw')")


# What happens between calls can only happen after whole calls.
CALL_MULTIPLES = (
  'steps',
  'log_every_steps',
  'eval_every_steps',
  'checkpoint_every_steps',
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training run. Sizes are global: of all devices together."""

  steps: int = 400_000  # parameter updates
  batch_size: int = 22  # rows: parallel streams of text, each with its memory
  segment_length: int = 512  # tokens a row reads at once
  segments_per_step: int = 1  # in a row; their gradients are averaged
  loss: Literal['full', 'half'] = 'full'  # half: of each segment's last half
  tokens: int | None = None  # read in the whole run, instead of steps
  row_chunks: int = 1  # rows are read in so many parts, to save memory
  steps_per_call: int = 1  # updates for which the host is not asked
  seed: int = 0
  init_from: str = ''  # a work directory or an export, for its parameters
  # Steps in a row whose loss or gradient is not finite end the run.
  max_skipped_steps: int = 10
  log_every_steps: int = 200
  eval_every_steps: int = 4000
  stop_after_validations: int | None = None  # without a better one
  checkpoint_every_steps: int = 4000
  keep_checkpoints: int = 2  # the newest, beside the best
  keep_every_steps: int | None = None  # these are kept, too
  tensorboard: bool = True
  wandb_project: str = ''  # '' = no Weights & Biases
  profile_steps: int = 0  # in a profiler trace
  deterministic: bool = False  # the same bits on a GPU, at a cost

  def __post_init__(self):
    at_least(self, 1, 'steps batch_size segment_length segments_per_step')
    at_least(self, 1, 'log_every_steps eval_every_steps')
    at_least(self, 1, 'checkpoint_every_steps keep_checkpoints')
    at_least(self, 1, 'tokens row_chunks steps_per_call max_skipped_steps')
    at_least(self, 1, 'stop_after_validations keep_every_steps')
    at_least(self, 0, 'seed profile_steps')
    divides = f'a divisor of batch_size ({self.batch_size})'
    fits = self.batch_size % self.row_chunks == 0
    require(fits, self, 'row_chunks', divides)
    per_call = self.steps_per_call
    for name in CALL_MULTIPLES:
      value = getattr(self, name)
      whole = value is None or value % per_call == 0
      require(whole, self, name, f'a multiple of steps_per_call ({per_call})')

  @property
  def tokens_per_step(self) -> int:
    """Tokens that one update reads."""
    return self.batch_size * self.segment_length * self.segments_per_step


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices as a grid. One axis may be -1: all devices that are left."""

  # Rows of the batch are divided over `data` and `fsdp` together.
  data: int = -1
  fsdp: int = 1  # divides parameters and their optimizer state as well
  tensor: int = 1  # divides heads, feed-forward width and vocabulary

  def __post_init__(self):
    filled, expected = None, 'at least 1, or -1 for all devices that are left'
    for name, value in dataclasses.asdict(self).items():
      require(value >= 1 or value == -1, self, name, expected)
      if value == -1:
        require(not filled, self, name, f'at least 1, as {filled} is -1')
        filled = name
