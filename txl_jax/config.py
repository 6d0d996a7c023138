"""The configuration of an experiment: frozen dataclasses, checked at birth.

Modules receive the section they need, never the whole configuration.
"""

import dataclasses
from typing import Any, Literal

from txl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model: hashable, so that it can be a static argument of `jax.jit`."""

  vocab_size: int
  n_layers: int = 12
  n_heads: int = 8
  d_model: int = 512
  d_head: int = 64
  d_ff: int = 2048
  d_embed: int | None = None  # None = d_model
  memory_length: int = 512  # remembered positions per layer; 0 = no recurrence
  attention_span: int | None = None  # visible keys per query, itself included
  clamp_length: int | None = None  # distances above it count as equal to it
  # The paper's own, or those it is compared with (model/ablations.py).
  position_encoding: Literal['relative', 'shaw', 'sinusoid', 'learned'] = (
    'relative'
  )
  n_positions: int | None = None  # that the other three encodings tell apart
  # Adaptive embedding and softmax (cluster i has width d_embed // div_val**i).
  cutoffs: tuple[int, ...] = ()
  div_val: int = 1
  tie_weights: bool = True  # the softmax uses the embedding tables
  tie_projections: tuple[bool, ...] = ()  # one per cluster; () = none tied
  square_projections: bool = True  # keep d_model x d_model ones (div_val > 1)
  untie_biases: bool = False  # u and v per layer instead of shared by all
  pre_norm: bool = False  # layer norm before each sublayer instead of after
  layer_norm_epsilon: float = 1e-5
  dropout: float = 0.1
  attention_dropout: float = 0.0
  position_dropout: Literal['element', 'feature'] = 'element'
  memory_start: Literal['empty', 'zeros'] = 'empty'
  init_std: float = 0.02
  projection_init_std: float = 0.01
  dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'  # of activations
  # The paper's encoding on its way through ops/relative_attention.py.
  attention_implementation: Literal['auto', 'reference', 'xla'] = 'auto'
  remat: bool = False  # recompute each layer in the backward pass
  unroll: int = 1  # layers per iteration of the scan over them

  def __post_init__(self):
    # Lists would not be hashable.
    object.__setattr__(self, 'cutoffs', tuple(self.cutoffs))
    object.__setattr__(self, 'tie_projections', tuple(self.tie_projections))
    _at_least(
      self, 1, 'vocab_size n_layers n_heads d_model d_head d_ff d_embed'
    )
    _at_least(self, 1, 'div_val unroll')
    _at_least(self, 0, 'memory_length clamp_length layer_norm_epsilon')
    _at_least(self, 0, 'init_std projection_init_std')
    _fraction(self, 'dropout attention_dropout')
    _require(self.d_model % 2 == 0, self, 'd_model', 'even')
    check_span(self, 'model')
    self._check_positions()
    bounds = (0, *self.cutoffs, self.vocab_size)
    ascending = all(low < high for low, high in zip(bounds, bounds[1:]))
    inner = f'ascending numbers from 1 to {self.vocab_size - 1}'
    _require(ascending, self, 'cutoffs', inner)
    n_clusters = len(self.cutoffs) + 1
    one_each = len(self.tie_projections) in (0, n_clusters)
    choices = f'empty or {n_clusters} long (one per cluster)'
    _require(one_each, self, 'tie_projections', choices)
    narrowest = self.embed_width // self.div_val ** len(self.cutoffs)
    _require(narrowest >= 1, self, 'div_val', 'smaller: a cluster has width 0')

  def _check_positions(self) -> None:
    encoding = self.position_encoding
    if encoding == 'relative':
      known, expected = self.n_positions is None, 'None'
    else:
      known, expected = (self.n_positions or 0) >= 1, 'at least 1'
    expected += f' with position_encoding {encoding!r}'
    _require(known, self, 'n_positions', expected)
    clamped = self.clamp_length is not None and self.absolute_positions
    expected = f'None with position_encoding {encoding!r}'
    _require(not clamped, self, 'clamp_length', expected)

  @property
  def absolute_positions(self) -> bool:
    """Whether positions belong to tokens instead of pairs of them."""
    return self.position_encoding in ('sinusoid', 'learned')

  @property
  def embed_width(self) -> int:
    """Width E of the embedding of the most frequent words."""
    return self.d_model if self.d_embed is None else self.d_embed


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the text comes from, how it is split and made into tokens."""

  # Your own text: a file, a folder of files, JSON lines; compressed or not.
  path: str = ''  # '' = the source code of Python's own library
  # Parts of your own text; the test part ends it, validation stands before.
  validation_fraction: float = 0.05
  test_fraction: float = 0.05
  # Or a data set of TensorFlow Datasets, each example a document.
  tfds_name: str = ''
  text_field: str = 'text'  # of JSON lines, or of those examples
  # Or one of the paper's corpora, with its splits and its vocabulary.
  corpus: Literal[
    '', 'enwik8', 'text8', 'wikitext103', 'wikitext2', 'ptb', 'lm1b'
  ] = ''
  manual_dir: str = ''  # where files of it lie that you have downloaded
  cache_dir: str = '~/.cache/txl_jax'  # prepared corpora
  tokenizer: Literal['bytes', 'characters', 'words', 'subwords'] = 'bytes'
  tokenizer_path: str = ''  # of subwords; '' = trained on the text
  max_vocabulary: int | None = None  # words or subwords, at most
  min_count: int = 1  # rarer words become <unk>
  lower_case: bool = False  # of words
  roll: bool = False  # each epoch begins at another place of each row

  def __post_init__(self):
    _at_least(self, 1, 'min_count max_vocabulary')
    for other in ('corpus', 'tfds_name'):
      both = f"'' with {other} {getattr(self, other)!r}"
      _require(not (getattr(self, other) and self.path), self, 'path', both)
    both = f"'' with corpus {self.corpus!r}"
    _require(not (self.corpus and self.tfds_name), self, 'tfds_name', both)
    for name in ('validation_fraction', 'test_fraction'):
      _require(0 < getattr(self, name) < 0.5, self, name, 'in (0, 0.5)')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer: linear warm-up, cosine decay, clipping of the global norm."""

  name: Literal['adam', 'lamb', 'sgd'] = 'adam'
  learning_rate: float = 2.5e-4
  final_learning_rate: float = 0.0
  # 'cosine' decays from the end of the warm-up on; 'cosine_official' from step
  # 0 on, the warm-up overriding it, as the paper's PyTorch code does.
  schedule: Literal['cosine', 'cosine_official'] = 'cosine'
  warmup_steps: int = 0
  b1: float = 0.9  # momentum, with sgd
  b2: float = 0.999
  epsilon: float = 1e-8
  clip_norm: float = 0.25

  def __post_init__(self):
    _above_zero(self, 'learning_rate epsilon clip_norm')
    _at_least(self, 0, 'final_learning_rate warmup_steps')
    _fraction(self, 'b1 b2')


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
    _at_least(self, 1, 'steps batch_size segment_length segments_per_step')
    _at_least(self, 1, 'log_every_steps eval_every_steps')
    _at_least(self, 1, 'checkpoint_every_steps keep_checkpoints')
    _at_least(self, 1, 'tokens row_chunks steps_per_call max_skipped_steps')
    _at_least(self, 1, 'stop_after_validations keep_every_steps')
    _at_least(self, 0, 'seed profile_steps')
    divides = f'a divisor of batch_size ({self.batch_size})'
    fits = self.batch_size % self.row_chunks == 0
    _require(fits, self, 'row_chunks', divides)
    per_call = self.steps_per_call
    for name in CALL_MULTIPLES:
      value = getattr(self, name)
      whole = value is None or value % per_call == 0
      _require(whole, self, name, f'a multiple of steps_per_call ({per_call})')

  @property
  def tokens_per_step(self) -> int:
    """Tokens that one update reads."""
    return self.batch_size * self.segment_length * self.segments_per_step


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation has its own rows, segments and memory, as in the paper."""

  batch_size: int = 10
  segment_length: int = 128
  memory_length: int = 512
  attention_span: int | None = None
  clamp_length: int | None = None
  # Sliding evaluation, without memory: windows of segment_length that move by
  # so many tokens, of each of which only the new tokens count.
  stride: int | None = None

  def __post_init__(self):
    _at_least(self, 1, 'batch_size segment_length stride')
    _at_least(self, 0, 'memory_length clamp_length')
    check_span(self, 'eval')
    if self.stride is not None:
      within = f'at most segment_length ({self.segment_length})'
      _require(self.stride <= self.segment_length, self, 'stride', within)
      _require(
        self.memory_length == 0, self, 'memory_length', '0 with a stride'
      )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """The samples written at the end of training."""

  prompts: tuple[str, ...] = ('',)  # () = no samples
  length: int = 500  # tokens
  temperature: float = 0.8  # 0 = always the most likely token
  top_k: int | None = None
  top_p: float | None = 0.95

  def __post_init__(self):
    _at_least(self, 1, 'length top_k')
    _at_least(self, 0, 'temperature')
    inside = self.top_p is None or 0 < self.top_p <= 1
    _require(inside, self, 'top_p', 'in (0, 1]')


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
      _require(value >= 1 or value == -1, self, name, expected)
      if value == -1:
        _require(not filled, self, name, f'at least 1, as {filled} is -1')
        filled = name


def _default(cls: type) -> Any:
  return dataclasses.field(default_factory=cls)


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole experiment."""

  model: ModelConfig
  data: DataConfig = _default(DataConfig)
  optimizer: OptimizerConfig = _default(OptimizerConfig)
  train: TrainConfig = _default(TrainConfig)
  eval: EvalConfig = _default(EvalConfig)
  sample: SampleConfig = _default(SampleConfig)
  mesh: MeshConfig = _default(MeshConfig)


def check_span(config: Any, section: str) -> None:
  """A query sees `span` keys, itself included, so memory must hold the rest."""
  span, most = config.attention_span, config.memory_length + 1
  if span is not None and not 1 <= span <= most:
    raise InputError(
      f'config.{section}.attention_span must be from 1 to memory_length + 1 '
      f'({most}), found {span}'
    )


def _require(condition: bool, config: Any, name: str, expected: str) -> None:
  if not condition:
    section = type(config).__name__.removesuffix('Config').lower()
    found = getattr(config, name)
    raise InputError(
      f'config.{section}.{name} must be {expected}, found {found!r}'
    )


def _at_least(config: Any, low: int, names: str) -> None:
  for name in names.split():
    value = getattr(config, name)
    _require(value is None or value >= low, config, name, f'at least {low}')


def _above_zero(config: Any, names: str) -> None:
  for name in names.split():
    _require(getattr(config, name) > 0, config, name, 'above 0')


def _fraction(config: Any, names: str) -> None:
  for name in names.split():
    _require(0 <= getattr(config, name) < 1, config, name, 'in [0, 1)')
