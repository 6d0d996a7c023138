"""What a training run needs before it begins, checked."""

import dataclasses
import os
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from txl_jax.config import Config
from txl_jax.data.corpora import Corpus, check_vocabulary, load_corpus
from txl_jax.data.sentences import SentenceStream
from txl_jax.data.streams import TrainStream
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import (
  Result,
  evaluate,
  evaluation_model,
)
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.metrics import MetricsFile
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import TrainState, init_state
from txl_jax.training.workdir import WorkDir

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a run needs and does not change.

  Attributes:
    config: the experiment.
    corpus: its text.
    mesh: the devices.
    stream: step -> batch.
    work: the work directory.
    say: receives progress lines.
  """

  config: Config
  corpus: Corpus
  mesh: Mesh
  stream: TrainStream | SentenceStream
  work: WorkDir
  say: Say

  @property
  def metrics(self) -> MetricsFile:
    """The metrics file of the run."""
    return MetricsFile(self.work.metrics)

  def init(self) -> TrainState:
    """A fresh train state."""
    config = self.config
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return init_state(config, optimizer)

  def evaluate(self, params: dict, split: str) -> Result:
    """Scores a split with the evaluation settings."""
    return evaluate(
      self.config.model,
      params,
      self.corpus.tokens[split],
      self.corpus.vocabulary,
      self.config.eval,
      self.mesh,
    )


def set_up(config: Config, workdir: str | os.PathLike, say: Say) -> Setup:
  """Reads the text and checks all that can be checked before work begins.

  Raises:
    InputError: naming what does not fit.
  """
  config = _with_absolute_path(config)
  corpus = load_corpus(config.data, say)
  check_vocabulary(corpus, config.model.vocab_size)
  mesh = mesh_lib.make_mesh()
  train = config.train
  mesh_lib.check_rows(mesh, train.batch_size, 'config.train.batch_size')
  mesh_lib.check_rows(mesh, config.eval.batch_size, 'config.eval.batch_size')
  if config.model.dtype == 'float64' and not jax.config.jax_enable_x64:
    raise InputError(
      "config.model.dtype is 'float64', which needs JAX_ENABLE_X64=1"
    )
  evaluation_model(config.model, config.eval)  # raises for what cannot be
  if config.model.absolute_positions and config.sample.prompts:
    raise InputError(
      'config.sample.prompts must be () for a model with absolute positions, '
      'which cannot generate'
    )
  if config.model.memory_start == 'zeros':
    raise InputError(
      "config.model.memory_start must be 'empty' for text made of documents"
    )
  stream = _stream(config, corpus)
  return Setup(config, corpus, mesh, stream, WorkDir(workdir), say)


def _stream(config: Config, corpus: Corpus) -> TrainStream | SentenceStream:
  """What is read at each step: sentences in any order, or rows of the text."""
  train, tokens = config.train, corpus.tokens['train']
  sizes = dict(
    batch_size=train.batch_size,
    segment_length=train.segment_length,
    segments_per_step=train.segments_per_step,
    seed=train.seed,
  )
  if corpus.vocabulary.mark is not None:
    return SentenceStream(tokens, corpus.vocabulary.mark, **sizes)
  boundary, roll = corpus.vocabulary.boundary, config.data.roll
  return TrainStream(tokens, boundary, roll=roll, **sizes)


def _with_absolute_path(config: Config) -> Config:
  """So that the run can be evaluated from any folder."""
  path = config.data.path and os.path.abspath(config.data.path)
  data = dataclasses.replace(config.data, path=path)
  return dataclasses.replace(config, data=data)
