"""The configuration of an experiment: frozen dataclasses, checked at birth.

Modules receive the section they need, never the whole configuration.
"""

import dataclasses
from typing import Any, Literal

from txl_jax.checks import at_least, fraction, require
from txl_jax.errors import InputError
from txl_jax.optimizer_config import OptimizerConfig
from txl_jax.train_config import MeshConfig, TrainConfig


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
  # The paper's encoding on its way through ops/relative_attention.py; and
  # whether ops/feed_forward.py may take kernels, too.
  attention_implementation: Literal[
    'auto', 'reference', 'xla', 'mosaic_gpu', 'splash'
  ] = 'auto'
  remat: bool = False  # recompute each layer in the backward pass
  unroll: int | None = None  # layers per loop; None = GPU: all, others: 1

  def __post_init__(self):
    # Lists would not be hashable.
    object.__setattr__(self, 'cutoffs', tuple(self.cutoffs))
    object.__setattr__(self, 'tie_projections', tuple(self.tie_projections))
    at_least(self, 1, 'vocab_size n_layers n_heads d_model d_head d_ff d_embed')
    at_least(self, 1, 'div_val unroll')
    at_least(self, 0, 'memory_length clamp_length layer_norm_epsilon')
    at_least(self, 0, 'init_std projection_init_std')
    fraction(self, 'dropout attention_dropout')
    require(self.d_model % 2 == 0, self, 'd_model', 'even')
    check_span(self, 'model')
    self._check_positions()
    bounds = (0, *self.cutoffs, self.vocab_size)
    ascending = all(low < high for low, high in zip(bounds, bounds[1:]))
    inner = f'ascending numbers from 1 to {self.vocab_size - 1}'
    require(ascending, self, 'cutoffs', inner)
    n_clusters = len(self.cutoffs) + 1
    one_each = len(self.tie_projections) in (0, n_clusters)
    choices = f'empty or {n_clusters} long (one per cluster)'
    require(one_each, self, 'tie_projections', choices)
    narrowest = self.embed_width // self.div_val ** len(self.cutoffs)
    require(narrowest >= 1, self, 'div_val', 'smaller: a cluster has width 0')

  def _check_positions(self) -> None:
    encoding = self.position_encoding
    if encoding == 'relative':
      known, expected = self.n_positions is None, 'None'
    else:
      known, expected = (self.n_positions or 0) >= 1, 'at least 1'
    expected += f' with position_encoding {encoding!r}'
    require(known, self, 'n_positions', expected)
    clamped = self.clamp_length is not None and self.absolute_positions
    expected = f'None with position_encoding {encoding!r}'
    require(not clamped, self, 'clamp_length', expected)

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
    at_least(self, 1, 'min_count max_vocabulary')
    for other in ('corpus', 'tfds_name'):
      both = f"'' with {other} {getattr(self, other)!r}"
      require(not (getattr(self, other) and self.path), self, 'path', both)
    both = f"'' with corpus {self.corpus!r}"
    require(not (self.corpus and self.tfds_name), self, 'tfds_name', both)
    for name in ('validation_fraction', 'test_fraction'):
      require(0 < getattr(self, name) < 0.5, self, name, 'in (0, 0.5)')


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
  # Tokens that each row reads, but does not score, before its own: with as many
  # as the model can reach, several rows give the loss of one.
  warmup_tokens: int = 0

  def __post_init__(self):
    at_least(self, 1, 'batch_size segment_length stride')
    at_least(self, 0, 'memory_length clamp_length warmup_tokens')
    check_span(self, 'eval')
    if self.stride is not None:
      require(self.warmup_tokens == 0, self, 'warmup_tokens', '0 with a stride')
      within = f'at most segment_length ({self.segment_length})'
      require(self.stride <= self.segment_length, self, 'stride', within)
      require(self.memory_length == 0, self, 'memory_length', '0 with a stride')


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """The samples written at the end of training."""

  prompts: tuple[str, ...] = ('',)  # () = no samples
  length: int = 500  # tokens
  temperature: float = 0.8  # 0 = always the most likely token
  top_k: int | None = None
  top_p: float | None = 0.95
  min_p: float | None = None

  def __post_init__(self):
    at_least(self, 1, 'length top_k')
    at_least(self, 0, 'temperature')
    for name in ('top_p', 'min_p'):
      share = getattr(self, name)
      require(share is None or 0 < share <= 1, self, name, 'in (0, 1]')


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
