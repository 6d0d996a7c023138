"""The cache of a decoding loop, whose rows need not count all that they read.

Rows read the same number of tokens, of which only the first few may count: a
prompt shorter than its neighbours, a row that has stopped. `compact` then moves
each row's own last M positions to where all rows go on from.

Keys and values are kept in the slots of `model/cache.py`. Hidden states, which
stay right when parameters change, and encodings that have no such slots slide.
"""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model import cache as slots_lib
from txl_jax.model.memory import AnyMemory, Memory
from txl_jax.model.transformer import TransformerXL


@flax.struct.dataclass
class Sliding:
  """The last M + room positions.

  Attributes:
    memory: of M + room positions, of which M at most are seen.
    valid_B: int32, how many of them hold text (the last ones).
    n_read: int32, tokens read since it was last compacted.
    length: M.
  """

  memory: AnyMemory
  valid_B: jax.Array
  n_read: jax.Array
  length: int = flax.struct.field(pytree_node=False)


AnyCache = slots_lib.Cache | Sliding


def init_cache(
  config: ModelConfig, params: dict, memory: AnyMemory, room: int
) -> AnyCache:
  """The cache that begins with a memory.

  Args:
    config: the model.
    params: its parameters.
    memory: of the text before; either kind.
    room: tokens that can be read before the cache must be compacted.
  """
  if isinstance(memory, Memory) or config.position_encoding != 'relative':
    return slide(memory, room)
  return slots_lib.init_cache(config, params, memory, room)


def slide(memory: AnyMemory, room: int) -> Sliding:
  """A memory of either kind with room."""
  roomy = _each_layer(lambda x: _padded(x, room), memory)
  return Sliding(roomy, memory.valid_B, jnp.int32(0), memory.length)


def read_cached(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  cache: AnyCache,
  starts_BT: jax.Array | None,
) -> tuple[jax.Array, AnyCache]:
  """Reads T tokens; the hidden states [B, T, D] and the cache after them."""
  if not isinstance(cache, Sliding):
    return slots_lib.read_cached(config, params, tokens_BT, cache, starts_BT)
  valid_B = jnp.minimum(cache.valid_B, cache.length)
  hidden_BTD, memory = TransformerXL(config).apply(
    {'params': params},
    tokens_BT,
    cache.memory.replace(valid_B=valid_B),
    starts_BT,
  )
  n_read = cache.n_read + tokens_BT.shape[1]
  return hidden_BTD, cache.replace(
    memory=memory, valid_B=memory.valid_B, n_read=n_read
  )


def compact(cache: AnyCache, counted_B: jax.Array) -> AnyCache:
  """Makes room again.

  Args:
    cache: whose `valid_B` holds for each row's last token that counts.
    counted_B: how many of the tokens read since it was last compacted count,
      the first ones of each row.
  """
  if not isinstance(cache, Sliding):
    return slots_lib.compact(cache, counted_B)
  shift_B = cache.n_read - counted_B
  memory = _each_layer(lambda x: _shifted(x, shift_B), cache.memory)
  return cache.replace(memory=memory, n_read=jnp.int32(0))


def remembered(config: ModelConfig, cache: AnyCache) -> AnyMemory:
  """The memory, of the kind that the cache began with."""
  if not isinstance(cache, Sliding):
    return slots_lib.remembered(config, cache)
  room = cache.memory.length - cache.length
  memory = _each_layer(lambda x: x[:, :, room:], cache.memory)
  return memory.replace(valid_B=jnp.minimum(cache.valid_B, cache.length))


def _each_layer(
  change: Callable[[jax.Array], jax.Array], memory: AnyMemory
) -> AnyMemory:
  """The memory with its arrays [N, B, M, ...] changed."""
  changed = jax.tree.map(change, memory.layers)
  leaves = [*jax.tree.leaves(changed), memory.valid_B]
  return type(memory)(*leaves)


def _padded(x: jax.Array, room: int) -> jax.Array:
  return jnp.pad(x, [(0, 0), (0, 0), (room, 0), *[(0, 0)] * (x.ndim - 3)])


def _shifted(x: jax.Array, shift_B: jax.Array) -> jax.Array:
  """Moves the positions of each row to the right; what enters is not valid."""
  source_BK = jnp.arange(x.shape[2]) - shift_B[:, None]
  source_BK = jnp.maximum(source_BK, 0)
  index = source_BK[None, :, :, *[None] * (x.ndim - 3)]
  return jnp.take_along_axis(x, index, axis=2)
