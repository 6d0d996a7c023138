"""The train step as training runs it, on random text, with the clock on."""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from txl_jax.benchmark.synthetic import random_batch
from txl_jax.config import Config
from txl_jax.errors import InputError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.compile import compiler_options, lower_step
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state

# Batches that take turns; they lie on the devices beforehand.
N_BATCHES = 4


class Subject:
  """A compiled train step, its state, and text for it to read.

  The state is donated from step to step, as in training.

  Attributes:
    config: the experiment.
    compiled: the step.
  """

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Compiles the step and draws a state.

    Args:
      config: the experiment; its data are not read.
      mesh: the devices.

    Raises:
      InputError: if the rows do not divide among the devices, or the memory of
        a device is too small.
    """
    rows = config.train.batch_size
    mesh_lib.check_rows(mesh, rows, 'config.train.batch_size')
    self.config = config
    optimizer = make_optimizer(config.optimizer, config.train.steps)

    def init() -> Any:
      return init_state(config, optimizer)

    with memory_errors(config):
      shardings = mesh_lib.state_shardings(mesh, jax.eval_shape(init))
      self._state = jax.jit(init, out_shardings=shardings)()
      segments = config.train.segments_per_step * self.updates
      train = dataclasses.replace(config.train, segments_per_step=segments)
      batches = [
        random_batch(config.model.vocab_size, train, seed)
        for seed in range(N_BATCHES)
      ]
      by_rows = mesh_lib.by_rows(mesh, batches[0])
      batches = [jax.device_put(batch, by_rows) for batch in batches]
      self._lowered = lower_step(
        config, optimizer, mesh, self._state, batches[0]
      )
      self._mesh = mesh
      self.compiled = self.compile({})
    self._batches = itertools.cycle(batches)

  def compile(self, options: dict) -> jax.stages.Compiled:
    """The step as training has it, but for these options of the compiler."""
    with tempfile.TemporaryDirectory() as folder:
      own = compiler_options(self.config, pathlib.Path(folder), self._mesh)
      return self._lowered.compile(own | options)

  @property
  def updates(self) -> int:
    """Steps in a call of the compiled program."""
    return self.config.train.steps_per_call

  @property
  def tokens(self) -> int:
    """Tokens that a step reads."""
    train = self.config.train
    rows, segments = train.batch_size, train.segments_per_step
    return rows * train.segment_length * segments

  @property
  def parameters(self) -> int:
    """How many the model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(self._state.params))

  def run(self, calls: int) -> None:
    """Calls the program again and again, then waits for the last call."""
    with memory_errors(self.config):
      for _ in range(calls):
        self._state, metrics = self.compiled(self._state, next(self._batches))
      jax.block_until_ready((self._state, metrics))

  def warm_up(self) -> int:
    """Calls until the memory is full, three times at least; says how often."""
    train, memory = self.config.train, self.config.model.memory_length
    read = train.segment_length * train.segments_per_step * self.updates
    calls = max(3, math.ceil(memory / read))
    self.run(calls)
    return calls

  def step_memory(self) -> int | None:
    """Bytes that XLA plans for a step on one device, its state included."""
    plan = self.compiled.memory_analysis()
    if plan is None:
      return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return held - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def time_steps(subjects: list[Subject], steps: int) -> list[list[float]]:
  """Seconds of each call of each subject, who take turns.

  Each is waited for, so that the time to launch it counts.
  """
  seconds = [[] for _ in subjects]
  for _ in range(steps):
    for subject, taken in zip(subjects, seconds):
      began = time.perf_counter()
      subject.run(1)
      taken.append(time.perf_counter() - began)
  return seconds


def time_queued(subject: Subject, calls: int) -> float:
  """Seconds of a call if the next is launched meanwhile, as in training."""
  subject.run(1)
  began = time.perf_counter()
  subject.run(calls)
  return (time.perf_counter() - began) / calls


@contextlib.contextmanager
def memory_errors(config: Config) -> Iterator[None]:
  """Turns XLA's error about too little memory into a sentence."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise InputError(
      f'a step of {config.train.batch_size} rows does not fit into the memory '
      'of the devices: lower --batch, or set --config.model.remat=True'
    ) from error
