"""Consecutive segments: the memory threaded through a `jax.lax.scan`."""

import functools

import jax

from txl_jax.config import ModelConfig
from txl_jax.model import cache as cache_lib
from txl_jax.model.functional import check_tokens, score
from txl_jax.model.memory import AnyMemory, Memory, ProjectedMemory
from txl_jax.model.transformer import TransformerXL


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

  segments = (tokens_SBT, targets_SBT, starts_SBT)
  if isinstance(memory, Memory) or dropout_key is not None:
    return _score_segments(config, params, *segments, memory, dropout_key)
  return _score_cached(config, params, segments, memory)


@functools.partial(jax.jit, static_argnums=0)
def _score_segments(
  config: ModelConfig,
  params: dict,
  tokens_SBT: jax.Array,
  targets_SBT: jax.Array,
  starts_SBT: jax.Array | None,
  memory: AnyMemory,
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


@functools.partial(jax.jit, static_argnums=0)
def _score_cached(
  config: ModelConfig,
  params: dict,
  segments: tuple[jax.Array, jax.Array, jax.Array | None],
  memory: ProjectedMemory,
) -> tuple[jax.Array, ProjectedMemory]:
  """The same with a cache, which slides once in a block of segments."""
  S, _, T = segments[0].shape
  n = _segments_in_block(S, T, memory.length)
  blocks = jax.tree.map(
    lambda x_SBT: x_SBT.reshape(S // n, n, *x_SBT.shape[1:]), segments
  )
  params = cache_lib.compute_copy(config, params)
  model, variables = TransformerXL(config), {'params': params}

  def step(cache: cache_lib.AnyCache, segment: tuple) -> tuple:
    tokens_BT, targets_BT, starts_BT = segment
    hidden_BTD, cache = cache_lib.read_cached(
      config, params, tokens_BT, cache, starts_BT
    )
    nll_BT = model.apply(variables, hidden_BTD, targets_BT, method='losses')
    return cache, nll_BT

  def read_block(cache: cache_lib.AnyCache, block: tuple) -> tuple:
    cache, nll_nBT = jax.lax.scan(step, cache_lib.compact(cache), block)
    return cache, nll_nBT

  cache = cache_lib.init_cache(config, params, memory, room=n * T)
  cache, nll_SBT = jax.lax.scan(read_block, cache, blocks)
  nll_SBT = nll_SBT.reshape(S, *nll_SBT.shape[2:])
  return nll_SBT, cache_lib.remembered(config, cache)


def _segments_in_block(n_segments: int, length: int, memory_length: int) -> int:
  """How many segments fill a quarter of the memory, at least one.

  More would slide less often, but compute more scores that nobody sees.
  """
  most = max(1, memory_length // (4 * length))
  return max(n for n in range(1, most + 1) if n_segments % n == 0)
