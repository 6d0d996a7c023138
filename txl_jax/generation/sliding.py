"""A memory of either kind with room for what is read next.

Rows read the same number of tokens, of which only the first few may count: a
prompt shorter than its neighbours, a row that has stopped. `compact` then moves
each row's own last M positions to where all rows go on from.
"""

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model.memory import AnyMemory
from txl_jax.model.transformer import TransformerXL


@flax.struct.dataclass
class SlidingCache:
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


def init_cache(
  config: ModelConfig, params: dict, memory: AnyMemory, room: int
) -> SlidingCache:
  """The cache that begins with a memory.

  Args:
    config: the model.
    params: its parameters.
    memory: of the text before; either kind.
    room: tokens that can be read before the cache must be compacted.
  """
  del config, params
  layers = jax.tree.map(lambda x: _padded(x, room), memory.layers)
  valid_B, length = memory.valid_B, memory.length
  memory = memory.with_layers(layers, valid_B)
  return SlidingCache(memory, valid_B, jnp.int32(0), length)


def read_cached(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  cache: SlidingCache,
  starts_BT: jax.Array | None,
) -> tuple[jax.Array, SlidingCache]:
  """Reads T tokens; the hidden states [B, T, D] and the cache after them."""
  valid_B = jnp.minimum(cache.valid_B, cache.length)
  memory = cache.memory.replace(valid_B=valid_B)
  hidden_BTD, memory = TransformerXL(config).apply(
    {'params': params}, tokens_BT, memory, starts_BT
  )
  n_read = cache.n_read + tokens_BT.shape[1]
  return hidden_BTD, cache.replace(
    memory=memory, valid_B=memory.valid_B, n_read=n_read
  )


def compact(
  cache: SlidingCache, counted_B: jax.Array | None = None
) -> SlidingCache:
  """Makes room again.

  Args:
    cache: whose `valid_B` holds for each row's last token that counts.
    counted_B: how many of the tokens read since it was last compacted count,
      the first ones of each row; None = all.
  """
  if counted_B is not None:
    shift_B = cache.n_read - counted_B
    memory = cache.memory
    layers = jax.tree.map(lambda x: _shifted(x, shift_B), memory.layers)
    memory = memory.with_layers(layers, memory.valid_B)
    cache = cache.replace(memory=memory)
  return cache.replace(n_read=jnp.int32(0))


def remembered(cache: SlidingCache) -> AnyMemory:
  """The memory, of the kind that the cache began with."""
  room = cache.memory.length - cache.length
  layers = jax.tree.map(lambda x: x[:, :, room:], cache.memory.layers)
  valid_B = jnp.minimum(cache.valid_B, cache.length)
  return cache.memory.with_layers(layers, valid_B)


def _padded(x: jax.Array, room: int) -> jax.Array:
  return jnp.pad(x, [(0, 0), (0, 0), (room, 0), *[(0, 0)] * (x.ndim - 3)])


def _shifted(x: jax.Array, shift_B: jax.Array) -> jax.Array:
  """Moves the positions of each row to the right; what enters is not valid."""
  source_BK = jnp.arange(x.shape[2]) - shift_B[:, None]
  source_BK = jnp.maximum(source_BK, 0)
  index = source_BK[None, :, :, *[None] * (x.ndim - 3)]
  return jnp.take_along_axis(x, index, axis=2)
