"""The training run: from a configuration to a finished work directory."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.config import Config
from txl_jax.data.corpora import Corpus, check_vocabulary, load_corpus
from txl_jax.data.streams import Batch, TrainStream
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import Result, evaluate
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.checkpoint import Checkpoints, abstract_state
from txl_jax.training.metrics import Meter, MetricsFile
from txl_jax.training.optimizer import make_optimizer, make_schedule
from txl_jax.training.state import TrainState, init_state
from txl_jax.training.step import make_train_step
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
  stream: TrainStream
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


def set_up(config: Config, workdir: Any, say: Say) -> Setup:
  """Reads the text and checks all that can be checked before work begins.

  Raises:
    InputError: naming what does not fit.
  """
  config = _with_absolute_path(config)
  corpus = load_corpus(config.data)
  check_vocabulary(corpus, config.model.vocab_size)
  mesh = mesh_lib.make_mesh()
  train = config.train
  mesh_lib.check_rows(mesh, train.batch_size, 'config.train.batch_size')
  mesh_lib.check_rows(mesh, config.eval.batch_size, 'config.eval.batch_size')
  if config.model.memory_start == 'zeros':
    raise InputError(
      "config.model.memory_start must be 'empty' for text made of documents"
    )
  stream = TrainStream(
    corpus.tokens['train'],
    corpus.vocabulary.boundary,
    batch_size=train.batch_size,
    segment_length=train.segment_length,
    segments_per_step=train.segments_per_step,
  )
  return Setup(config, corpus, mesh, stream, WorkDir(workdir), say)


def _with_absolute_path(config: Config) -> Config:
  """So that the run can be evaluated from any folder."""
  path = config.data.path and os.path.abspath(config.data.path)
  data = dataclasses.replace(config.data, path=path)
  return dataclasses.replace(config, data=data)


def train(setup: Setup) -> TrainState:
  """Trains until `config.train.steps`, from the newest checkpoint if any.

  Raises:
    InputError: if the work directory holds another run.
    TrainingError: if the loss is not finite.
  """
  setup.work.create()
  checkpoints = Checkpoints(
    setup.work.checkpoints, setup.config.train.keep_checkpoints
  )
  state, meter = _start(setup, checkpoints)
  if int(state.step) < setup.config.train.steps:
    step = _compile(setup, state)
    state = _run(setup, checkpoints, step, state, meter)
  checkpoints.close()
  return state


def _start(setup: Setup, checkpoints: Checkpoints) -> tuple[TrainState, Meter]:
  """The newest checkpoint, or the beginning of a new run."""
  corpus = setup.corpus.summary()
  if checkpoints.steps():
    setup.work.check_same_run(setup.config, corpus)
  abstract = abstract_state(setup.init, setup.mesh)
  had_some = bool(checkpoints.steps())
  restored = checkpoints.restore(abstract, setup.say)
  if had_some and not restored:
    setup.say('No whole checkpoint is left: starting from the beginning.')
  facts = _facts(setup, abstract.params, corpus)
  setup.work.write_run(setup.config, facts)
  _introduce(setup, facts)
  if restored:
    state, sums = restored
    setup.metrics.drop_after(int(state.step))
    setup.say(f'Going on from step {int(state.step):,}.')
    return state, Meter(sums)
  setup.metrics.drop_after(-1)
  shardings = mesh_lib.state_shardings(setup.mesh, abstract)
  return jax.jit(setup.init, out_shardings=shardings)(), Meter()


def _facts(setup: Setup, params: Any, corpus: dict) -> dict:
  devices = setup.mesh.devices.flat
  return {
    'txl_jax': version('txl_jax'),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'devices': f'{setup.mesh.size} x {devices[0].device_kind}',
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'corpus': corpus,
  }


def _introduce(setup: Setup, facts: dict) -> None:
  model, corpus = setup.config.model, facts['corpus']
  sizes = ', '.join(
    f'{len(ids):,} {split}' for split, ids in setup.corpus.tokens.items()
  )
  setup.say(f'Text     {corpus["name"]}: tokens {sizes}')
  setup.say(
    f'Model    {model.n_layers} layers of width {model.d_model}, memory '
    f'{model.memory_length}, {facts["parameters"]:,} parameters'
  )
  setup.say(f'Devices  {facts["devices"]}, jax {facts["jax"]}')


def _compile(setup: Setup, state: TrainState) -> Callable:
  """The train step for this mesh, compiled ahead of the first batch."""
  began = time.monotonic()
  config = setup.config
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  shardings = mesh_lib.state_shardings(setup.mesh, state)
  batch = _place(setup, setup.stream[0])
  step = jax.jit(
    make_train_step(config.model, optimizer),
    in_shardings=(shardings, mesh_lib.by_rows(setup.mesh, batch)),
    out_shardings=(shardings, mesh_lib.replicated(setup.mesh)),
    donate_argnums=0,
  )
  compiled = step.lower(state, batch).compile()
  setup.say(f'Compiled in {time.monotonic() - began:.0f} s')
  return compiled


def _place(setup: Setup, batch: Batch) -> Batch:
  """The batch on the devices."""
  return jax.device_put(batch, mesh_lib.by_rows(setup.mesh, batch))


def _run(
  setup: Setup,
  checkpoints: Checkpoints,
  train_step: Callable,
  state: TrainState,
  meter: Meter,
) -> TrainState:
  """The loop. A line of metrics is fetched while the next step computes."""
  train, late = setup.config.train, None
  for i in range(int(state.step), train.steps):
    host_batch = setup.stream[i]
    state, metrics = train_step(state, _place(setup, host_batch))
    if late:
      _log(setup, late, i)
      meter.follow(late)
    done, late = i + 1, None
    targets = host_batch.targets_SBT
    characters = setup.corpus.vocabulary.characters(targets)
    meter.add(done, metrics, targets.size, characters)
    if _due(done, train.log_every_steps, train.steps):
      late, meter = meter, Meter()
    evaluating = _due(done, train.eval_every_steps, train.steps)
    saving = _due(done, train.checkpoint_every_steps, train.steps)
    if late and (evaluating or saving):
      _log(setup, late, done)
      late = None
    paused = time.monotonic()
    if evaluating:
      _validate(setup, state)
    if saving:
      checkpoints.save(state, meter.sums())
    meter.skip_time(paused)
  return state


def _due(done: int, every: int, last: int) -> bool:
  return done % every == 0 or done == last


def _log(setup: Setup, meter: Meter, done: int) -> None:
  config, line = setup.config, meter.line()
  schedule = make_schedule(config.optimizer, config.train.steps)
  rate = float(schedule(done - 1))
  train = config.train
  per_step = train.batch_size * train.segment_length * train.segments_per_step
  facts = {'tokens': done * per_step, 'learning_rate': rate}
  setup.metrics.append(step=done, split='train', **line, **facts)
  left = (train.steps - done) * per_step / line['tokens_per_second']
  setup.say(
    f'step {done:>{len(str(train.steps))}}/{train.steps}  '
    f'loss {line["loss"]:.3f}  bpc {line["bpc"]:.3f}  '
    f'{line["tokens_per_second"]:,.0f} tokens/s  {_clock(left)} left'
  )


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )


def _validate(setup: Setup, state: TrainState) -> None:
  result = setup.evaluate(state.params, 'validation')
  record_result(setup, int(state.step), 'validation', result)


def record_result(setup: Setup, step: int, split: str, result: Result) -> None:
  """Adds an evaluation to the metrics file and says it."""
  figures = result.to_json()
  setup.metrics.append(
    step=step, split=split, loss=figures.pop('nll'), **figures
  )
  setup.say(
    f'{split} at step {step:,}: loss {result.nll:.4f}  bpc {result.bpc:.4f}  '
    f'({result.tokens:,} tokens)'
  )
