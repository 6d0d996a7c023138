"""Loss against the length of the memory (Dai et al. 2019, table 6)."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from jax.sharding import Mesh

from txl_jax.config import EvalConfig, ModelConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import settings_line, summed, token_losses


def settings_of(config: EvalConfig, memory_length: int) -> EvalConfig:
  """The settings with another memory; where a span is set it grows along."""
  span = config.attention_span
  return dataclasses.replace(
    config,
    memory_length=memory_length,
    attention_span=None if span is None else memory_length + 1,
  )


def check_sweep(
  model: ModelConfig, config: EvalConfig, lengths: list[int]
) -> None:
  """Raises an InputError for what cannot be swept."""
  if model.absolute_positions:
    raise InputError(
      f'a model with position_encoding {model.position_encoding!r} cannot tell '
      'what is remembered from what it reads: its memory cannot be varied'
    )
  if config.stride is not None:
    raise InputError(
      f'config.eval.stride is {config.stride}, expected None: a window has no '
      'memory'
    )
  if not lengths or min(lengths) < 0:
    raise InputError(f'memory lengths must be at least 0, found {lengths}')


def sweep(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  vocabulary: Vocabulary,
  config: EvalConfig,
  mesh: Mesh,
  lengths: list[int],
  say: Callable[[str], None],
) -> Iterator[dict]:
  """Scores a text once for each length of the memory.

  Args:
    model: the model as trained.
    params: its parameters.
    tokens: ids of the text [n].
    vocabulary: made the ids.
    config: all other settings.
    mesh: the rows are divided among its devices.
    lengths: positions M that are remembered.
    say: receives lines of progress.

  Yields:
    For each length `memory_length`, the figures of `Result`, `seconds` (without
    the time to compile) and `tokens_per_second`.

  Raises:
    InputError: as `check_sweep` and `token_losses`.
  """
  check_sweep(model, config, lengths)
  for length in lengths:
    settings = settings_of(config, length)
    rest = vocabulary, settings, mesh
    token_losses(model, params, tokens[:2], *rest)  # compiles
    began = time.perf_counter()
    losses = token_losses(model, params, tokens, *rest)
    seconds = time.perf_counter() - began
    result = summed(losses, tokens, vocabulary)
    speed = result.tokens / seconds
    measure = vocabulary.measure
    say(
      f'memory {length:,}: {measure} {getattr(result, measure):.4f}, '
      f'{speed:,.0f} tokens/s ({result.tokens:,} tokens, '
      f'{settings_line(settings)})'
    )
    yield {
      'memory_length': length,
      'attention_span': settings.attention_span,
      **result.to_json(),
      'seconds': seconds,
      'tokens_per_second': speed,
    }
