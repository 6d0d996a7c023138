"""What a training run needs before it begins, checked."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import optax
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
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel import chips, processes
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import local_rows
from txl_jax.training.averaging import averaged
from txl_jax.training.metrics import MetricsFile
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.schedules import in_steps, make_schedule, steps_for
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
    metrics: the metrics file.
    say: receives progress lines.
  """

  config: Config
  corpus: Corpus
  mesh: Mesh
  stream: TrainStream | SentenceStream
  work: WorkDir
  metrics: MetricsFile
  say: Say

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    """The optimizer of the run."""
    return make_optimizer(self.config.optimizer, self.config.train.steps)

  @property
  def is_main(self) -> bool:
    """Whether this process writes what is written once."""
    return processes.is_main()

  def init(self) -> TrainState:
    """A fresh train state."""
    return init_state(self.config, self.optimizer)

  def evaluated_params(self, state: TrainState) -> dict:
    """The parameters that are evaluated: their average, if there is one."""
    return averaged(self.config.optimizer, state.average, state.params)

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

  def facts_of(self, step: int, tokens_per_second: float) -> dict[str, float]:
    """Tokens read, learning rate, and how well the devices are used."""
    train = self.config.train
    schedule = make_schedule(self.config.optimizer, train.steps)
    rate = float(schedule(step - 1))
    facts = {'tokens': step * train.tokens_per_step, 'learning_rate': rate}
    device = self.mesh.local_devices[0]
    if chip := chips.published(device.device_kind):
      per_token = training_operations_per_token(
        self.config.model,
        batch_size=train.batch_size,
        segment_length=train.segment_length,
      )
      peak = chip.flops * self.mesh.size
      facts['model_flop_utilisation'] = round(
        tokens_per_second * per_token / peak, 4
      )
    if memory := device.memory_stats():
      facts['peak_memory_bytes'] = memory['peak_bytes_in_use']
    return facts


def set_up(config: Config, workdir: str | os.PathLike, say: Say) -> Setup:
  """Reads the text and checks all that can be checked before work begins.

  Raises:
    InputError: naming what does not fit.
  """
  if not processes.is_main():
    say = _silent
  config = _resolved(config)
  mesh = mesh_lib.make_mesh(config.mesh)
  _check(config, mesh)
  corpus = load_corpus(config.data, say)
  check_vocabulary(corpus, config.model.vocab_size)
  work = WorkDir(workdir)
  metrics = MetricsFile(work.metrics, writing=processes.is_main())
  stream = _stream(config, corpus, mesh)
  return Setup(config, corpus, mesh, stream, work, metrics, say)


def _silent(line: str) -> None:
  """Only one process speaks."""


def _check(config: Config, mesh: Mesh) -> None:
  train, model = config.train, config.model
  rows = train.batch_size // train.row_chunks
  chunked = ' / row_chunks' if train.row_chunks > 1 else ''
  mesh_lib.check_rows(mesh, rows, f'config.train.batch_size{chunked}')
  mesh_lib.check_rows(mesh, config.eval.batch_size, 'config.eval.batch_size')
  if model.dtype == 'float64' and not jax.config.jax_enable_x64:
    raise InputError(
      "config.model.dtype is 'float64', which needs JAX_ENABLE_X64=1"
    )
  evaluation_model(model, config.eval)  # raises for what cannot be
  if model.absolute_positions and config.sample.prompts:
    raise InputError(
      'config.sample.prompts must be () for a model with absolute positions, '
      'which cannot generate'
    )
  if model.memory_start == 'zeros':
    raise InputError(
      "config.model.memory_start must be 'empty' for text made of documents"
    )


def _stream(
  config: Config, corpus: Corpus, mesh: Mesh
) -> TrainStream | SentenceStream:
  """What is read at each step: sentences in any order, or rows of the text."""
  train, tokens = config.train, corpus.tokens['train']
  sizes = dict(
    batch_size=train.batch_size,
    segment_length=train.segment_length,
    segments_per_step=train.segments_per_step,
    seed=train.seed,
    rows=local_rows(mesh, train.batch_size),
  )
  if corpus.vocabulary.mark is not None:
    return SentenceStream(tokens, corpus.vocabulary.mark, **sizes)
  boundary, roll = corpus.vocabulary.boundary, config.data.roll
  return TrainStream(tokens, boundary, roll=roll, **sizes)


def _resolved(config: Config) -> Config:
  """Paths that hold in any folder, and lengths in steps."""
  path = config.data.path and os.path.abspath(config.data.path)
  data = dataclasses.replace(config.data, path=path)
  train = config.train
  if train.tokens is not None:
    calls = steps_for(
      train.tokens, train.tokens_per_step * train.steps_per_call
    )
    train = dataclasses.replace(train, steps=calls * train.steps_per_call)
  optimizer = in_steps(config.optimizer, train.tokens_per_step)
  parts = dict(data=data, train=train, optimizer=optimizer)
  return dataclasses.replace(config, **parts)
