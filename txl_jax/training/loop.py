"""The training run: from a configuration to a finished work directory."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from txl_jax.config import TrainConfig
from txl_jax.data.prefetch import prefetch
from txl_jax.data.streams import Batch
from txl_jax.errors import InputError, Interrupted, TrainingError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel import processes
from txl_jax.parallel.loading import place
from txl_jax.training.checkpoint import Checkpoints
from txl_jax.training.compile import compile_step, compiler_options
from txl_jax.training.meter import Meter
from txl_jax.training.norms import group_norms
from txl_jax.training.profile import Profile
from txl_jax.training.progress import (
  listen,
  progress_bar,
  record_result,
  record_skipped,
  record_training,
)
from txl_jax.training.schedules import after_validation
from txl_jax.training.setup import Setup
from txl_jax.training.start import Notes, start
from txl_jax.training.state import TrainState
from txl_jax.training.step import scored


def train(setup: Setup) -> TrainState:
  """Trains until `config.train.steps`, from the newest checkpoint if any.

  Raises:
    InputError: if the work directory holds another run, or is in use.
    TrainingError: if losses stay not finite, or the disk cannot be written.
    Interrupted: after a signal to stop, when all is saved.
  """
  jax.eval_shape(setup.init)  # what cannot be is said before there is a folder
  setup.work.create()
  config = setup.config.train
  with setup.work.locked():
    checkpoints = Checkpoints(
      setup.work.checkpoints,
      config.keep_checkpoints,
      config.keep_every_steps,
    )
    best = Checkpoints(setup.work.best, keep=1)
    with contextlib.closing(checkpoints), contextlib.closing(best):
      state, notes = start(setup, checkpoints)
      best.drop_after(int(state.step))
      if int(state.step) < config.steps and not _enough(setup, notes):
        listen(setup, int(state.step))
        try:
          state = _run(setup, checkpoints, best, state, notes)
        except TrainingError:
          for meter in (notes.late, notes.meter):
            if meter:
              record_skipped(setup, meter)
          raise
  return state


def _enough(setup: Setup, notes: Notes) -> bool:
  """Whether validation has stopped the run early."""
  return notes.monitor.has_waited(setup.config.train.stop_after_validations)


def _batches(
  setup: Setup, first: int
) -> Iterator[tuple[int, Batch, list[dict[str, float]]]]:
  """Steps done after each call, its batch on the devices, and its counts."""
  train, per_call = setup.config.train, setup.config.train.steps_per_call

  def load(call: int) -> tuple[int, Batch, list[dict[str, float]]]:
    steps = range(call * per_call, (call + 1) * per_call)
    batches = [setup.stream[step] for step in steps]
    counts = [_counts(setup, batch) for batch in batches]
    batch = Batch(*map(np.concatenate, zip(*batches)))
    return steps.stop, place(setup.mesh, batch, train.batch_size), counts

  return prefetch(load, first // per_call, train.steps // per_call)


def _counts(setup: Setup, batch: Batch) -> dict[str, float]:
  """Tokens of all rows, and this process's share of their characters."""
  train, read = setup.config.train, batch.targets_SBT
  targets = scored(read, train.loss)
  n_rows = read.shape[1]
  # Several processes may load the same rows.
  copies = n_rows * jax.process_count() / train.batch_size
  return {
    'tokens': targets.size // n_rows * train.batch_size,
    'characters': setup.corpus.vocabulary.characters(targets) / copies,
    'read': read.size // n_rows * train.batch_size,
  }


def _run(
  setup: Setup,
  checkpoints: Checkpoints,
  best: Checkpoints,
  state: TrainState,
  notes: Notes,
) -> TrainState:
  """The loop. A line of metrics is fetched while the next step computes."""
  train, step, first = setup.config.train, None, int(state.step)
  profile = Profile(setup.work.profile, first, train.profile_steps)
  with progress_bar(train.steps, first) as bar, contextlib.closing(profile):
    for done, batch, counts in _batches(setup, first):
      if step is None:
        step = _compile(setup, state, batch)
        notes.meter.start()
      state, metrics = step(state, batch)
      profile.after(done)
      due = Due.after(done, train, processes.stop_requested(done))
      _log(setup, notes, state, metrics, counts, done, due)
      paused = time.monotonic()
      if due.validation:
        state = _validate(setup, best, state, notes)
      enough = due.validation and _enough(setup, notes)
      if due.checkpoint or enough:
        host = notes.to_json()
        record_skipped(setup, notes.meter)  # a run that goes on forgets them
        checkpoints.save(state, host)
      checkpoints.poll()
      best.poll()
      notes.meter.skip_time(paused)
      bar.update(len(counts))
      if due.stop:
        checkpoints.wait()
        raise Interrupted(f'Stopped by a signal; step {done:,} is saved.')
      if enough:
        setup.say(f'Validation gets no better: stopped at step {done:,}.')
        break
  return state


def _compile(setup: Setup, state: TrainState, batch: Batch) -> Callable:
  began, folder = time.monotonic(), setup.work.path / 'autotuning'
  options = compiler_options(setup.config, folder, setup.mesh)
  step = compile_step(
    setup.config, setup.optimizer, setup.mesh, state, batch, options
  )
  setup.say(f'Compiled in {time.monotonic() - began:.0f} s')
  return step


class Due(NamedTuple):
  """What is to be done after a step."""

  line: bool
  validation: bool
  checkpoint: bool
  stop: bool

  @classmethod
  def after(cls, done: int, train: TrainConfig, stop: bool) -> 'Due':
    """What the configuration wants; a stop wants a checkpoint."""
    every = (
      train.log_every_steps,
      train.eval_every_steps,
      train.checkpoint_every_steps,
    )
    last = done == train.steps
    line, validation, checkpoint = (last or done % n == 0 for n in every)
    return cls(line, validation, checkpoint or stop, stop)


def _log(
  setup: Setup,
  notes: Notes,
  state: TrainState,
  metrics: dict,
  counts: list[dict[str, float]],
  done: int,
  due: Due,
) -> None:
  """Adds a call; records a line one call late, or at once before a pause."""
  before = done - len(counts)
  if notes.late:
    _record(setup, notes, before)
  notes.meter.add(before + 1, metrics, counts)
  if due.line:
    notes.meter.add_parameter_norms(_parameter_norms(state.params))
    most = setup.config.train.max_skipped_steps
    notes.late, notes.meter = notes.meter, Meter(most_skipped=most)
  if notes.late and (due.validation or due.checkpoint):
    _record(setup, notes, done)


_parameter_norms = jax.jit(group_norms)


def _record(setup: Setup, notes: Notes, done: int) -> None:
  record_training(setup, notes.late, done, notes.rate_scale)
  notes.meter.follow(notes.late)
  notes.late = None


def _validate(
  setup: Setup, best: Checkpoints, state: TrainState, notes: Notes
) -> TrainState:
  """Validates, keeps the best state, and lowers the rate on a plateau."""
  step = int(state.step)
  try:
    result = setup.evaluate(setup.evaluated_params(state), 'validation')
  except InputError as error:
    raise TrainingError(f'validation at step {step:,}: {error}') from error
  record_result(setup, step, 'validation', result)
  if state.plateau is not None:
    plateau = after_validation(
      setup.config.optimizer, state.plateau, result.nll
    )
    notes.rate_scale = float(plateau.scale)
    place = mesh_lib.replicated(setup.mesh)
    state = state.replace(plateau=jax.device_put(plateau, place))
  if notes.monitor.after(step, result.nll):
    best.save(state, notes.to_json())
  return state
