"""Evaluation as `txl eval` computes it, on random text and random weights."""

import itertools
import math

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.synthetic import random_batch
from txl_jax.config import EvalConfig, ModelConfig, TrainConfig
from txl_jax.data.streams import Batch
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import (
  SEGMENTS_PER_CALL,
  empty_cache,
  evaluation_model,
)
from txl_jax.model.cache import AnyCache
from txl_jax.model.functional import init_params
from txl_jax.model.segments import score_segments
from txl_jax.parallel import mesh as mesh_lib

# Calls' worth of text that take turns.
N_BATCHES = 4


class Reader:
  """A model that reads on and on, a few segments a call.

  Attributes:
    model: with the memory, span and clamping of the evaluation.
    params: random.
    cache: of what has been read.
    compiled: a call.
    compile: the same, with options of the compiler.
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
    with mesh_lib.sharded(mesh):
      shapes = jax.eval_shape(lambda: init_reading(model, config))
      places = whole, mesh_lib.cache_shardings(mesh, shapes[1])
      init = jax.jit(lambda: init_reading(model, config), out_shardings=places)
      self.params, self.cache = init()
    batches = [
      some_text(model.vocab_size, config, seed) for seed in range(N_BATCHES)
    ]
    by_rows = mesh_lib.by_rows(mesh, batches[0])
    batches = [jax.device_put(batch, by_rows) for batch in batches]
    lowered = lower_reading(model, mesh, self.params, self.cache, batches[0])
    self.compile, self.compiled = lowered.compile, lowered.compile()
    self._config, self._batches = config, itertools.cycle(batches)

  @property
  def tokens(self) -> int:
    """Tokens that a call scores."""
    config = self._config
    return config.batch_size * config.segment_length * SEGMENTS_PER_CALL

  def run(self, calls: int) -> None:
    """Reads on, then waits for the last call."""
    for _ in range(calls):
      sums, self.cache = self.compiled(
        self.params, self.cache, next(self._batches)
      )
    jax.block_until_ready((sums, self.cache))

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


def init_reading(
  model: ModelConfig, config: EvalConfig
) -> tuple[dict, AnyCache]:
  """Random parameters, and a cache of nothing."""
  params = init_params(model, jax.random.key(0))
  return params, empty_cache(model, config, params)


def lower_reading(
  model: ModelConfig, mesh: Mesh, params: dict, cache: AnyCache, batch: Batch
) -> jax.stages.Lowered:
  """A call that reads some segments, for arrays or their placed shapes."""

  def read(params: dict, cache: AnyCache, batch: Batch) -> tuple:
    nll_SBT, cache = score_segments(
      model, params, batch.tokens_SBT, batch.targets_SBT, cache
    )
    return nll_SBT.sum(axis=-1), cache

  results = mesh_lib.replicated(mesh), mesh_lib.cache_shardings(mesh, cache)
  jitted = jax.jit(read, donate_argnums=1, out_shardings=results)
  with mesh_lib.sharded(mesh):
    return jitted.lower(params, cache, batch)


def some_text(vocab_size: int, config: EvalConfig, seed: int) -> Batch:
  """As training would read it."""
  sizes = TrainConfig(
    batch_size=config.batch_size,
    segment_length=config.segment_length,
    segments_per_step=SEGMENTS_PER_CALL,
  )
  return random_batch(vocab_size, sizes, seed)
