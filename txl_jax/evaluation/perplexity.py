"""The loss of a split, each of its targets scored once."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from txl_jax.config import EvalConfig, ModelConfig
from txl_jax.data.streams import Batch, eval_batches, sliding_batches
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.model.memory import Memory, init_memory
from txl_jax.model.segments import score_segments
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import place_all

SEGMENTS_PER_CALL = 8
Array = TypeVar('Array', np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class Result:
  """Sums over the scored tokens, divided once.

  Attributes:
    nll_sum: negative log-likelihood, natural log.
    tokens: targets scored.
    characters: those of them that are text, not document boundaries.
    starts: those that begin a sentence after the end of another one, where
      sentences have a mark at both ends (One Billion Word): certain, so that a
      model is not judged by them.
    starts_nll_sum: their share of the sum.
  """

  nll_sum: float
  tokens: int
  characters: int
  starts: int = 0
  starts_nll_sum: float = 0.0

  @property
  def nll(self) -> float:
    """Nats per token."""
    return self.nll_sum / self.tokens

  @property
  def ppl(self) -> float:
    """Perplexity per token."""
    return math.exp(self.nll)

  @property
  def bpc(self) -> float:
    """Bits per character of the text."""
    return self.nll_sum / math.log(2) / self.characters

  @property
  def ppl_without_starts(self) -> float:
    """Perplexity of the other targets, as most papers count them."""
    nll_sum = self.nll_sum - self.starts_nll_sum
    return math.exp(nll_sum / (self.tokens - self.starts))

  def to_json(self) -> dict:
    """The figures, for JSON."""
    figures = {'nll': self.nll, 'ppl': self.ppl, 'bpc': self.bpc}
    counts = {'tokens': self.tokens, 'characters': self.characters}
    if self.starts:
      counts['starts'] = self.starts
      figures['ppl_without_starts'] = self.ppl_without_starts
    return {**counts, **figures}


def evaluation_model(model: ModelConfig, config: EvalConfig) -> ModelConfig:
  """The model with the memory, span and clamping of the evaluation."""
  return dataclasses.replace(
    model,
    memory_length=config.memory_length,
    attention_span=config.attention_span,
    clamp_length=config.clamp_length,
    remat=False,
  )


def evaluate(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  vocabulary: Vocabulary,
  config: EvalConfig,
  mesh: Mesh,
) -> Result:
  """Scores a split.

  In contiguous rows, each beginning with empty memory; or, with a stride, in
  overlapping windows without memory.

  Args:
    model: the model as trained.
    params: its parameters.
    tokens: ids of the split [n], n - 1 of them targets.
    vocabulary: made the ids.
    config: rows, segment and memory length, span, clamping, stride.
    mesh: the rows are divided among its devices.

  Raises:
    InputError: for rows that do not divide among the devices, a split without
      targets, or losses that are not finite.
  """
  mesh_lib.check_rows(mesh, config.batch_size, 'config.eval.batch_size')
  if len(tokens) < 2:
    raise InputError(f'the split has {len(tokens)} tokens, expected at least 2')
  model = evaluation_model(model, config)
  memory = _empty_memory(model, config.batch_size, mesh)
  total, starts_total = 0.0, 0.0
  for part in _batches(tokens, vocabulary.boundary, config):
    batch, counts_SBT = place_all(mesh, part, config.batch_size)
    with mesh_lib.sharded(mesh):
      sums, memory = _nll_sums(
        model, vocabulary.mark, mesh, params, memory, batch, counts_SBT
      )
    sum_SB, starts_SB = np.asarray(jax.device_get(sums), np.float64)
    total, starts_total = total + sum_SB.sum(), starts_total + starts_SB.sum()
  if not math.isfinite(total):
    raise InputError(f'the loss of the split is {total}: the model is broken')
  return Result(
    float(total),
    len(tokens) - 1,
    vocabulary.characters(tokens[1:]),
    int(_is_start(tokens[:-1], tokens[1:], vocabulary.mark).sum()),
    float(starts_total),
  )


def _empty_memory(model: ModelConfig, batch_size: int, mesh: Mesh) -> Memory:
  def init() -> Memory:
    return init_memory(model, batch_size)

  places = mesh_lib.by_rows(mesh, jax.eval_shape(init))
  return jax.jit(init, out_shardings=places)()


def _is_start(tokens: Array, targets: Array, mark: int | None) -> Array:
  """Where a sentence begins after the end of another one."""
  if mark is None:
    return tokens < 0
  return (tokens == mark) & (targets == mark)


def _batches(
  tokens: np.ndarray, boundary: int | None, config: EvalConfig
) -> Iterator[tuple[Batch, np.ndarray]]:
  sizes = dict(
    batch_size=config.batch_size,
    segment_length=config.segment_length,
    segments=SEGMENTS_PER_CALL,
  )
  if config.stride is None:
    return eval_batches(tokens, boundary, **sizes)
  return sliding_batches(tokens, boundary, stride=config.stride, **sizes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _nll_sums(
  model: ModelConfig,
  mark: int | None,
  mesh: Mesh,
  params: dict,
  memory: Memory,
  batch: Batch,
  counts_SBT: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], Memory]:
  """Losses of the targets that count, and of the starts among them [S, B]."""
  starts_SBT = batch.starts_SBT if model.memory_start == 'empty' else None
  nll_SBT, memory = score_segments(
    model,
    params,
    batch.tokens_SBT,
    batch.targets_SBT,
    memory,
    starts_SBT=starts_SBT,
  )
  nll_SBT = jnp.where(counts_SBT, nll_SBT, 0)
  is_start_SBT = _is_start(batch.tokens_SBT, batch.targets_SBT, mark)
  of_starts_SBT = jnp.where(is_start_SBT, nll_SBT, 0)
  sums = nll_SBT.sum(axis=-1), of_starts_SBT.sum(axis=-1)
  # Whole on each device, so that each process can read them.
  return jax.lax.with_sharding_constraint(
    sums, mesh_lib.replicated(mesh)
  ), memory
