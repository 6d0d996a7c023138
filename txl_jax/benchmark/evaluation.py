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
    mesh_lib.check_rows(mesh, config.batch_size, 'config.eval.batch_size')
    if config.stride is not None:
      raise InputError(
        f'config.eval.stride is {config.stride}, expected None: sliding '
        'evaluation is not measured'
      )
    self.model = model = evaluation_model(model, config)
    whole = mesh_lib.replicated(mesh)
    self.params = jax.jit(
      lambda key: init_params(model, key), out_shardings=whole
    )(jax.random.key(0))

    def init(params: dict) -> AnyMemory:
      memory = init_memory(model, config.batch_size)
      return project_memory(model, params, memory)

    by_rows = mesh_lib.by_rows(mesh, jax.eval_shape(init, self.params))
    self.memory = jax.jit(init, out_shardings=by_rows)(self.params)
    batches = _text(model.vocab_size, config)
    places = mesh_lib.by_rows(mesh, batches[0])
    batches = [jax.device_put(batch, places) for batch in batches]

    def read(params: dict, memory: AnyMemory, batch: Batch) -> tuple:
      nll_SBT, memory = score_segments(
        model, params, batch.tokens_SBT, batch.targets_SBT, memory
      )
      return nll_SBT.sum(axis=-1), memory

    jitted = jax.jit(read, donate_argnums=1, out_shardings=(whole, by_rows))
    with mesh_lib.sharded(mesh):
      self.lowered = jitted.lower(self.params, self.memory, batches[0])
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


def _text(vocab_size: int, config: EvalConfig) -> list[Batch]:
  """As training would read it."""
  sizes = TrainConfig(
    batch_size=config.batch_size,
    segment_length=config.segment_length,
    segments_per_step=SEGMENTS_PER_CALL,
  )
  return [random_batch(vocab_size, sizes, seed) for seed in range(N_BATCHES)]
