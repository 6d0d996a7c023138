"""Consecutive segments: the memory threaded through a `jax.lax.scan`."""

import functools
from typing import TypeVar

import jax

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model import cache as cache_lib
from txl_jax.model.cache import AnyCache, Cache
from txl_jax.model.functional import check_tokens, score
from txl_jax.model.memory import AnyMemory, Memory, ProjectedMemory
from txl_jax.model.transformer import TransformerXL
from txl_jax.ops.cached_attention import skips_unseen

AnyState = TypeVar('AnyState', Memory, ProjectedMemory, Cache)


def score_segments(
  config: ModelConfig,
  params: dict,
  tokens_SBT: jax.Array,
  targets_SBT: jax.Array,
  memory: AnyState,
  *,
  starts_SBT: jax.Array | None = None,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, AnyState]:
  """Scores S consecutive segments of B rows.

  No gradient crosses from a segment into the one before it.

  Args:
    config: the model.
    params: its parameters.
    tokens_SBT: token ids.
    targets_SBT: the ids that follow them.
    memory: of the text before; either kind, or from `begin_reading`.
    starts_SBT: True where a token begins a document.
    dropout_key: turns dropout on; each segment gets its own fold of it. Not
      with what `begin_reading` returns.

  Returns:
    Negative log-likelihoods [S, B, T], natural log, in token order, and the
    memory after the last segment.

  Raises:
    InputError: as `score`.
  """
  check_tokens(config, tokens_SBT, 'tokens_SBT')
  check_tokens(config, targets_SBT, 'targets_SBT')

  segments = (tokens_SBT, targets_SBT, starts_SBT)
  if isinstance(memory, Cache):
    _check_cache(memory, tokens_SBT.shape[2], dropout_key)
    return _read_on(config, params, segments, memory)
  if isinstance(memory, Memory) or dropout_key is not None:
    return _score_segments(config, params, *segments, memory, dropout_key)
  return _score_cached(config, params, segments, memory)


def _check_cache(
  cache: Cache, segment_length: int, dropout_key: jax.Array | None
) -> None:
  if dropout_key is not None:
    raise InputError('dropout_key is set, expected None with a cache')
  if segment_length > cache.room:
    raise InputError(
      f'tokens_SBT has segments of {segment_length}, expected at most '
      f'{cache.room}, for which the cache has room'
    )


def begin_reading(
  config: ModelConfig,
  params: dict,
  memory: AnyMemory,
  *,
  n_segments: int,
  segment_length: int,
) -> Cache | ProjectedMemory:
  """What call after call of `score_segments` may fill, instead of a memory.

  A memory would be brought into another form and back in each call.

  Args:
    config: the model.
    params: its parameters, those of all the calls.
    memory: of the text before; either kind.
    n_segments: S of the calls.
    segment_length: T of the calls.

  Returns:
    A cache; for an encoding other than the paper's own the projected memory.
  """
  B, length = len(memory.valid_B), memory.length
  skips = skips_unseen(
    config.dtype,
    (B, segment_length, config.n_heads, config.d_head),
    config.attention_implementation,
  )
  n = _segments_in_block(
    n_segments, segment_length, length if skips else length // 4
  )
  return cache_lib.init_cache(config, params, memory, room=n * segment_length)


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
  """The same by way of a cache."""
  S, _, T = segments[0].shape
  cache = begin_reading(config, params, memory, n_segments=S, segment_length=T)
  nll_SBT, cache = _read_on(config, params, segments, cache)
  return nll_SBT, cache_lib.remembered(config, cache)


@functools.partial(jax.jit, static_argnums=0)
def _read_on(
  config: ModelConfig,
  params: dict,
  segments: tuple[jax.Array, jax.Array, jax.Array | None],
  cache: AnyCache,
) -> tuple[jax.Array, AnyCache]:
  """The same with a cache, which slides once in a block of segments."""
  S, _, T = segments[0].shape
  n = _segments_in_block(S, T, cache.room) if isinstance(cache, Cache) else 1
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

  cache, nll_SBT = jax.lax.scan(read_block, cache, blocks)
  return nll_SBT.reshape(S, *nll_SBT.shape[2:]), cache


def _segments_in_block(n_segments: int, length: int, room: int) -> int:
  """How many segments there is room for, at least one, of equal blocks.

  With more room slots slide less often, but where attention does not skip what
  nobody sees more scores are computed.
  """
  most = max(1, room // length)
  return max(n for n in range(1, most + 1) if n_segments % n == 0)
