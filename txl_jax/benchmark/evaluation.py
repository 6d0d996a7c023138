"""Evaluation as `txl eval` computes it, on random text and random weights."""

import itertools
import math

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.synthetic import random_batch
from txl_jax.config import EvalConfig, ModelConfig, TrainConfig
from txl_jax.data.streams import Batch
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import SEGMENTS_PER_CALL, evaluation_model
from txl_jax.model.functional import init_params, project_memory
from txl_jax.model.memory import AnyMemory, init_memory
from txl_jax.model.segments import score_segments
from txl_jax.parallel import mesh as mesh_lib

# Calls' worth of text that take turns.
N_BATCHES = 4


class Reader:
  """A model that reads on and on, a few segments a call.

  Attributes:
    model: with the memory, span and clamping of the evaluation.
    params: random.
    memory: of what has been read.
    lowered: a call.
    compiled: the same.
  """

  def __init__(self, model: ModelConfig, config: EvalConfig, mesh: Mesh):
    """Draws parameters and text, and compiles.

    Args:
      model: as trained.
      config: rows, segment and memory length, span, clamping.
      mesh: the rows are divided among its devices.

    Raises:
      InputError: if the rows do not divide among the devices, or for a stride.
    """
    self.model = model = checked_model(model, config, mesh)
    whole = mesh_lib.replicated(mesh)
    rows = config.batch_size
    shapes = jax.eval_shape(lambda: init_reading(model, rows))
    places = whole, mesh_lib.by_rows(mesh, shapes[1])
    init = jax.jit(lambda: init_reading(model, rows), out_shardings=places)
    self.params, self.memory = init()
    batches = [
      some_text(model.vocab_size, config, seed) for seed in range(N_BATCHES)
    ]
    by_rows = mesh_lib.by_rows(mesh, batches[0])
    batches = [jax.device_put(batch, by_rows) for batch in batches]
    self.lowered = lower_reading(
      model, mesh, self.params, self.memory, batches[0]
    )
    self.compiled = self.lowered.compile()
    self._config, self._batches = config, itertools.cycle(batches)

  @property
  def tokens(self) -> int:
    """Tokens that a call scores."""
    config = self._config
    return config.batch_size * config.segment_length * SEGMENTS_PER_CALL

  def run(self, calls: int) -> None:
    """Reads on, then waits for the last call."""
    for _ in range(calls):
      sums, self.memory = self.compiled(
        self.params, self.memory, next(self._batches)
      )
    jax.block_until_ready((sums, self.memory))

  def fill(self) -> int:
    """Reads until the memory is full, two calls at least; says how many."""
    read = self._config.segment_length * SEGMENTS_PER_CALL
    calls = max(2, math.ceil(self._config.memory_length / read))
    self.run(calls)
    return calls


def checked_model(
  model: ModelConfig, config: EvalConfig, mesh: Mesh
) -> ModelConfig:
  """The model as it is evaluated.

  Raises:
    InputError: if the rows do not divide among the devices, or for a stride.
  """
  mesh_lib.check_rows(mesh, config.batch_size, 'config.eval.batch_size')
  if config.stride is not None:
    raise InputError(
      f'config.eval.stride is {config.stride}, expected None: sliding '
      'evaluation is not measured'
    )
  return evaluation_model(model, config)


def init_reading(model: ModelConfig, n_rows: int) -> tuple[dict, AnyMemory]:
  """Random parameters, and a memory of nothing."""
  params = init_params(model, jax.random.key(0))
  return params, project_memory(model, params, init_memory(model, n_rows))


def lower_reading(
  model: ModelConfig,
  mesh: Mesh,
  params: dict,
  memory: AnyMemory,
  batch: Batch,
) -> jax.stages.Lowered:
  """A call that reads some segments, for arrays or their placed shapes."""

  def read(params: dict, memory: AnyMemory, batch: Batch) -> tuple:
    nll_SBT, memory = score_segments(
      model, params, batch.tokens_SBT, batch.targets_SBT, memory
    )
    return nll_SBT.sum(axis=-1), memory

  results = mesh_lib.replicated(mesh), mesh_lib.by_rows(mesh, memory)
  jitted = jax.jit(read, donate_argnums=1, out_shardings=results)
  with mesh_lib.sharded(mesh):
    return jitted.lower(params, memory, batch)


def some_text(vocab_size: int, config: EvalConfig, seed: int) -> Batch:
  """As training would read it."""
  sizes = TrainConfig(
    batch_size=config.batch_size,
    segment_length=config.segment_length,
    segments_per_step=SEGMENTS_PER_CALL,
  )
  return random_batch(vocab_size, sizes, seed)
