"""The cache: a memory for reading on and on at fixed parameters.

A `ProjectedMemory` slides: each segment copies all of it. Here each layer has
slots for the M remembered positions and for some more; they are filled in
place, and only when they are full the last M positions move to the front.
What depends on the parameters alone is computed once.
"""

from typing import TypeVar

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model import memory as memory_lib
from txl_jax.model.functional import project_memory
from txl_jax.model.layer import Layer
from txl_jax.model.memory import AnyMemory, ProjectedMemory
from txl_jax.model.transformer import TransformerXL, check_memory
from txl_jax.ops.cached_attention import (
  Slots,
  heads_first,
  pad_table,
  slots_for,
)
from txl_jax.ops.sinusoids import sinusoid_table


@flax.struct.dataclass
class Cache:
  """Keys and values of each layer, with room for more.

  Attributes:
    slots: of each layer; all are filled equally far.
    layers: the layers' parameters, one by one, in the dtype they are used in.
    valid_B: int32, how many of the M remembered positions hold text.
    length: M, the number of remembered positions.
  """

  slots: tuple[Slots, ...]
  layers: tuple[dict, ...]
  valid_B: jax.Array
  length: int = flax.struct.field(pytree_node=False)

  @property
  def end(self) -> jax.Array:
    """How many slots are filled, remembered positions and those before."""
    return self.slots[0].end

  @property
  def room(self) -> int:
    """Tokens that can be read before `compact` has to make room again."""
    return self.slots[0].keys_HBLC.shape[2] - self.length - 1


AnyCache = TypeVar('AnyCache', Cache, ProjectedMemory)


def compute_copy(config: ModelConfig, params: dict) -> dict:
  """The parameters in the dtype that they are used in, cast once for a loop.

  Only layer norms and the softmax's biases are used as they are stored.
  """

  def cast(path: tuple, leaf: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path)
    stored = '_norm' in name or ('softmax' in name and 'bias' in name)
    return leaf if stored else leaf.astype(config.dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def init_cache(
  config: ModelConfig, params: dict, memory: AnyMemory, room: int
) -> Cache | ProjectedMemory:
  """The cache of a memory.

  Args:
    config: the model.
    params: its parameters.
    memory: of the text before; either kind.
    room: tokens that can be read before `compact` has to make room again.

  Returns:
    A cache; for an encoding other than the paper's own, for which there is
    none, the projected memory, which the functions below take instead.
  """
  memory = project_memory(config, params, memory)
  if config.position_encoding != 'relative':
    return memory
  n_slots = slots_for(memory.length + room + 1)  # see `read_cached`
  wide = jnp.promote_types(config.dtype, jnp.float32)
  table_WD = sinusoid_table(
    n_slots, config.d_model, config.clamp_length, dtype=wide
  )
  table_WD = table_WD.astype(config.dtype)
  stacked = compute_copy(config, params)['layers']
  layers = tuple(
    jax.tree.map(lambda leaf_NX, n=n: leaf_NX[n], stacked)
    for n in range(config.n_layers)
  )
  slots = tuple(
    Slots(
      _with_room(keys_BMHC, n_slots),
      _with_room(values_BMHC, n_slots),
      pad_table(
        jnp.einsum('wd,dhc->whc', table_WD, layer['attention']['relative'])
      ),
      jnp.int32(memory.length),
    )
    for keys_BMHC, values_BMHC, layer in zip(*memory.layers, layers)
  )
  return Cache(slots, layers, memory.valid_B, memory.length)


def _with_room(x_BMHC: jax.Array, n_slots: int) -> jax.Array:
  x_HBMC = heads_first(x_BMHC)
  room = n_slots - x_HBMC.shape[2]
  return jnp.pad(x_HBMC, ((0, 0), (0, 0), (0, room), (0, 0)))


def read_cached(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  cache: AnyCache,
  starts_BT: jax.Array | None = None,
) -> tuple[jax.Array, AnyCache]:
  """Reads a segment, as `TransformerXL` does.

  Args:
    config: the model.
    params: its parameters, those that the cache was made with.
    tokens_BT: token ids; as many as there is room for.
    cache: from `init_cache`.
    starts_BT: True where a token begins a document.

  Returns:
    The hidden states [B, T, D] and the cache after the segment.

  Raises:
    InputError: as `TransformerXL`.
  """
  model, variables = TransformerXL(config), {'params': params}
  if not isinstance(cache, Cache):
    return model.apply(variables, tokens_BT, cache, starts_BT)
  check_memory(config, tokens_BT, cache, starts_BT)
  B, T = tokens_BT.shape
  sizes = dict(memory_length=cache.length, segment_length=T)
  first_BT = memory_lib.visibility(
    cache.valid_B, starts_BT, attention_span=config.attention_span, **sizes
  )
  first_BT += cache.end - cache.length
  biases = None
  if not config.untie_biases:
    biases = tuple(
      params[name].astype(config.dtype)
      for name in ('content_bias', 'position_bias')
    )
  if B == T == 1 and jax.default_backend() == 'gpu':
    # With a single vector XLA has no matrix products and is slow. Another one
    # follows, which attends to nothing; its slot will be written anew.
    tokens_BT = jnp.repeat(tokens_BT, 2, axis=1)
  hidden_BTD = model.apply(variables, tokens_BT, method='embed')
  layer, filled = Layer(config, train=False), []
  for slots, layer_params in zip(cache.slots, cache.layers):
    # One for all, so that what follows from it is computed once.
    slots = slots._replace(end=cache.end)
    hidden_BTD, slots = layer.apply(
      {'params': layer_params}, hidden_BTD, slots, None, biases, first_BT
    )
    # As from every memory, no gradient comes back from the segments after.
    keys_and_values = jax.lax.stop_gradient(slots[:2])
    filled.append(Slots(*keys_and_values, slots.r_HWC, slots.end + T))
  valid_B = memory_lib.valid_after(cache.valid_B, starts_BT, **sizes)
  cache = cache.replace(slots=tuple(filled), valid_B=valid_B)
  return hidden_BTD[:, :T], cache


def compact(cache: AnyCache, counted_B: jax.Array | None = None) -> AnyCache:
  """The cache with all its room again.

  Args:
    cache: whose `valid_B` holds for each row's last token that counts.
    counted_B: how many of the tokens read since it was last compacted count,
      the first ones of each row; None = all. Projected memories count all.
  """
  if not isinstance(cache, Cache):
    return cache

  def to_front(slots_HBLC: jax.Array, end: jax.Array) -> jax.Array:
    kept_HBMC = (
      _last(slots_HBLC, end, cache.length)
      if counted_B is None
      else _last_of_rows(slots_HBLC, cache.length + counted_B, cache.length)
    )
    return slots_HBLC.at[:, :, : cache.length].set(kept_HBMC)

  return cache.replace(
    slots=tuple(
      Slots(
        to_front(slots.keys_HBLC, slots.end),
        to_front(slots.values_HBLC, slots.end),
        slots.r_HWC,
        jnp.int32(cache.length),
      )
      for slots in cache.slots
    )
  )


def remembered(config: ModelConfig, cache: AnyCache) -> ProjectedMemory:
  """The memory of the text that has been read."""
  if not isinstance(cache, Cache):
    return cache

  def stacked(name: str) -> jax.Array:
    kept_NHBMC = jnp.stack(
      [_last(getattr(s, name), s.end, cache.length) for s in cache.slots]
    )
    return kept_NHBMC.transpose(0, 2, 3, 1, 4)[..., : config.d_head]

  return ProjectedMemory(
    stacked('keys_HBLC'), stacked('values_HBLC'), cache.valid_B
  )


def _last(slots_HBLC: jax.Array, end: jax.Array, length: int) -> jax.Array:
  """The last positions before `end` [H, B, length, C]."""
  return jax.lax.dynamic_slice_in_dim(slots_HBLC, end - length, length, axis=2)


def _last_of_rows(
  slots_HBLC: jax.Array, end_B: jax.Array, length: int
) -> jax.Array:
  """The same, where each row has an end of its own."""
  place_BM = (end_B - length)[:, None] + jnp.arange(length)
  return jnp.take_along_axis(slots_HBLC, place_BM[None, :, :, None], axis=2)
