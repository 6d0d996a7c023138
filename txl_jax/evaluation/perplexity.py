"""The loss of a split, each of its targets scored once."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from txl_jax.config import EvalConfig, ModelConfig
from txl_jax.data.streams import Batch, eval_batches, sliding_batches
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.model.cache import AnyCache
from txl_jax.model.memory import init_memory
from txl_jax.model.segments import begin_reading, score_segments
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import place_all

SEGMENTS_PER_CALL = 8


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
  """The model with the memory, span and clamping of the evaluation.

  Raises:
    InputError: for a model that attends to zeros, if rows are to be warmed up.
  """
  if config.warmup_tokens and model.memory_start == 'zeros':
    raise InputError(
      f'config.eval.warmup_tokens is {config.warmup_tokens}, expected 0 for a '
      "model with memory_start 'zeros'"
    )
  return dataclasses.replace(
    model,
    memory_length=config.memory_length,
    attention_span=config.attention_span,
    clamp_length=config.clamp_length,
    remat=False,
  )


def settings_line(config: EvalConfig) -> str:
  """How a figure has been found, for people."""
  parts = [
    f'{config.batch_size} rows',
    f'warm-up {config.warmup_tokens:,}',
    f'segment {config.segment_length:,}',
    f'memory {config.memory_length:,}',
    f'attention span {_or_none(config.attention_span)}',
    f'clamp {_or_none(config.clamp_length)}',
  ]
  if config.stride is not None:
    parts.append(f'stride {config.stride:,}')
  return ', '.join(parts)


def _or_none(value: int | None) -> str:
  return 'none' if value is None else f'{value:,}'


def evaluate(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  vocabulary: Vocabulary,
  config: EvalConfig,
  mesh: Mesh,
) -> Result:
  """Scores a split; arguments and errors are those of `token_losses`."""
  losses = token_losses(model, params, tokens, vocabulary, config, mesh)
  return summed(losses, tokens, vocabulary)


def summed(
  losses: np.ndarray, tokens: np.ndarray, vocabulary: Vocabulary
) -> Result:
  """The sums over all targets.

  Args:
    losses: of each target [n - 1].
    tokens: ids of the text [n].
    vocabulary: made the ids.
  """
  starts = np.zeros(len(losses), np.bool_)
  if vocabulary.mark is not None:
    starts = (tokens[:-1] == vocabulary.mark) & (tokens[1:] == vocabulary.mark)
  return Result(
    float(losses.sum(dtype=np.float64)),
    len(losses),
    vocabulary.characters(tokens[1:]),
    int(starts.sum()),
    float(losses[starts].sum(dtype=np.float64)),
  )


def token_losses(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  vocabulary: Vocabulary,
  config: EvalConfig,
  mesh: Mesh,
  *,
  starts: np.ndarray | None = None,
) -> np.ndarray:
  """The loss of each token of a text but the first, in order.

  The text is read in contiguous rows, each beginning with empty memory and, if
  there is a warm-up, with text that the row before it scores; or, with a
  stride, in overlapping windows without memory.

  Args:
    model: the model as trained.
    params: its parameters.
    tokens: ids of the text [n], n - 1 of them targets.
    vocabulary: made the ids.
    config: rows, segment and memory length, span, clamping, stride, warm-up.
    mesh: the rows are divided among its devices.
    starts: bool [n], tokens that begin a document, beside the vocabulary's
      boundary. A model that attends to zeros knows no documents.

  Returns:
    Negative log-likelihoods, natural log, float32 [n - 1].

  Raises:
    InputError: for rows that do not divide among the devices, a text without
      targets, or losses that are not finite.
  """
  mesh_lib.check_rows(mesh, config.batch_size, 'config.eval.batch_size')
  if len(tokens) < 2:
    raise InputError(f'the split has {len(tokens)} tokens, expected at least 2')
  model = evaluation_model(model, config)
  with mesh_lib.sharded(mesh):
    cache = _begin(model, config, mesh, params)
  losses = np.full(len(tokens) - 1, np.nan, np.float32)
  pending = None
  for part, target_SBT in _batches(tokens, vocabulary.boundary, config, starts):
    batch = place_all(mesh, part, config.batch_size)
    with mesh_lib.sharded(mesh):
      nll_SBT, cache = _score(model, mesh, params, cache, batch)
    # The devices are busy with this call while the last one's are fetched.
    _keep(losses, pending)
    pending = nll_SBT, target_SBT
  _keep(losses, pending)
  total = float(losses.sum(dtype=np.float64))
  if not math.isfinite(total):
    raise InputError(f'the loss of the split is {total}: the model is broken')
  return losses


def _keep(
  losses: np.ndarray, scored: tuple[jax.Array, np.ndarray] | None
) -> None:
  """Puts the losses of a call where they belong."""
  if scored is None:
    return
  nll_SBT, target_SBT = scored
  counts_SBT = target_SBT >= 0
  losses[target_SBT[counts_SBT]] = np.asarray(nll_SBT)[counts_SBT]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
  model: ModelConfig, config: EvalConfig, mesh: Mesh, params: dict
) -> AnyCache:
  return _divided(empty_cache(model, config, params), mesh)


def empty_cache(
  model: ModelConfig, config: EvalConfig, params: dict
) -> AnyCache:
  """A cache of nothing, for the calls that read a split.

  Args:
    model: as it is evaluated.
    config: has the rows and the length of a segment.
    params: of the model.
  """
  return begin_reading(
    model,
    params,
    init_memory(model, config.batch_size),
    n_segments=SEGMENTS_PER_CALL,
    segment_length=config.segment_length,
  )


def _divided(cache: AnyCache, mesh: Mesh) -> AnyCache:
  """Divided by rows, so that each call finds it where the last one left it."""
  places = mesh_lib.cache_shardings(mesh, cache)
  return jax.lax.with_sharding_constraint(cache, places)


def _batches(
  tokens: np.ndarray,
  boundary: int | None,
  config: EvalConfig,
  starts: np.ndarray | None,
) -> Iterator[tuple[Batch, np.ndarray]]:
  sizes = dict(
    batch_size=config.batch_size,
    segment_length=config.segment_length,
    segments=SEGMENTS_PER_CALL,
    starts=starts,
  )
  if config.stride is None:
    warmup = config.warmup_tokens
    return eval_batches(tokens, boundary, warmup=warmup, **sizes)
  return sliding_batches(tokens, boundary, stride=config.stride, **sizes)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _score(
  model: ModelConfig,
  mesh: Mesh,
  params: dict,
  cache: AnyCache,
  batch: Batch,
) -> tuple[jax.Array, AnyCache]:
  """Losses [S, B, T], and the cache after the last segment."""
  starts_SBT = batch.starts_SBT if model.memory_start == 'empty' else None
  nll_SBT, cache = score_segments(
    model,
    params,
    batch.tokens_SBT,
    batch.targets_SBT,
    cache,
    starts_SBT=starts_SBT,
  )
  # Whole on each device, so that each process can read them.
  whole = mesh_lib.replicated(mesh)
  nll_SBT = jax.lax.with_sharding_constraint(nll_SBT, whole)
  return nll_SBT, _divided(cache, mesh)
