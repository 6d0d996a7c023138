"""The training run: from a configuration to a finished work directory."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

from txl_jax.data.prefetch import prefetch
from txl_jax.data.streams import Batch
from txl_jax.errors import InputError, TrainingError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.checkpoint import Checkpoints, abstract_state
from txl_jax.training.metrics import Meter
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.progress import record_result, record_training
from txl_jax.training.setup import Setup
from txl_jax.training.state import TrainState
from txl_jax.training.step import make_train_step, scored


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
  setup.work.write_run(setup.config, setup.corpus.vocabulary, facts)
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
    'measure': setup.corpus.vocabulary.measure,
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
    make_train_step(config.model, optimizer, loss=config.train.loss),
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


def _load(setup: Setup, step: int) -> tuple[Batch, dict[str, int]]:
  """The batch of a step on the devices, and what is counted of it."""
  host_batch = setup.stream[step]
  targets = scored(host_batch.targets_SBT, setup.config.train.loss)
  counts = {
    'tokens': targets.size,
    'characters': setup.corpus.vocabulary.characters(targets),
    'read': host_batch.targets_SBT.size,
  }
  return _place(setup, host_batch), counts


def _run(
  setup: Setup,
  checkpoints: Checkpoints,
  train_step: Callable,
  state: TrainState,
  meter: Meter,
) -> TrainState:
  """The loop. A line of metrics is fetched while the next step computes."""
  train, late = setup.config.train, None
  meter.start()
  first = int(state.step)
  batches = prefetch(lambda i: _load(setup, i), first, train.steps)
  for i, (batch, counts) in enumerate(batches, first):
    state, metrics = train_step(state, batch)
    if late:
      record_training(setup, late, i)
      meter.follow(late)
    done, late = i + 1, None
    meter.add(done, metrics, **counts)
    if _due(done, train.log_every_steps, train.steps):
      late, meter = meter, Meter()
    evaluating = _due(done, train.eval_every_steps, train.steps)
    saving = _due(done, train.checkpoint_every_steps, train.steps)
    if late and (evaluating or saving):
      record_training(setup, late, done)
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


def _validate(setup: Setup, state: TrainState) -> None:
  step = int(state.step)
  try:
    result = setup.evaluate(state.params, 'validation')
  except InputError as error:
    raise TrainingError(f'validation at step {step}: {error}') from error
  record_result(setup, step, 'validation', result)
