"""The parts of a configuration that say how training goes."""

import dataclasses
from typing import Literal

from txl_jax.checks import at_least, require

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
