"""Consecutive segments: the memory threaded through a `jax.lax.scan`."""

import functools

import jax

from txl_jax.config import ModelConfig
from txl_jax.model.functional import check_tokens, score
from txl_jax.model.memory import AnyMemory


def score_segments(
  config: ModelConfig,
  params: dict,
  tokens_SBT: jax.Array,
  targets_SBT: jax.Array,
  memory: AnyMemory,
  *,
  starts_SBT: jax.Array | None = None,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, AnyMemory]:
  """Scores S consecutive segments of B rows.

  No gradient crosses from a segment into the one before it.

  Args:
    config: the model.
    params: its parameters.
    tokens_SBT: token ids.
    targets_SBT: the ids that follow them.
    memory: of the text before; either kind.
    starts_SBT: True where a token begins a document.
    dropout_key: turns dropout on; each segment gets its own fold of it.

  Returns:
    Negative log-likelihoods [S, B, T], natural log, in token order, and the
    memory after the last segment.

  Raises:
    InputError: as `score`.
  """
  check_tokens(config, tokens_SBT, 'tokens_SBT')
  check_tokens(config, targets_SBT, 'targets_SBT')

  return _score_segments(
    config, params, tokens_SBT, targets_SBT, memory, starts_SBT, dropout_key
  )


@functools.partial(jax.jit, static_argnums=0)
def _score_segments(
  config: ModelConfig,
  params: dict,
  tokens_SBT: jax.Array,
  targets_SBT: jax.Array,
  memory: AnyMemory,
  starts_SBT: jax.Array | None,
  dropout_key: jax.Array | None,
) -> tuple[jax.Array, AnyMemory]:
  def step(memory: AnyMemory, segment: tuple) -> tuple[AnyMemory, jax.Array]:
    tokens_BT, targets_BT, starts_BT, key = segment
    nll_BT, memory = score(
      config,
      params,
      tokens_BT,
      targets_BT,
      memory,
      starts_BT=starts_BT,
      dropout_key=key,
    )
    return memory, nll_BT

  keys_S = None
  if dropout_key is not None:
    keys_S = jax.random.split(dropout_key, tokens_SBT.shape[0])
  segments = (tokens_SBT, targets_SBT, starts_SBT, keys_S)
  memory, nll_SBT = jax.lax.scan(step, memory, segments)
  return nll_SBT, memory
