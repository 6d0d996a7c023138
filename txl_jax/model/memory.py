"""The memory: what each layer remembers of the text before the segment.

A memory is a value. It has a static shape and, for each row, a count of its
valid positions, which are the last ones; so filling and full memory share one
compilation. Letters as everywhere: N layers, B rows, M positions, D model,
H heads, C head width, T segment.
"""

from typing import TypeVar

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig


@flax.struct.dataclass
class Memory:
  """Hidden states: the inputs of each layer at the last M positions.

  Attributes:
    hidden_NBMD: hidden states, oldest first, without gradient.
    valid_B: int32, how many of the M positions hold text (the last ones).
  """

  hidden_NBMD: jax.Array
  valid_B: jax.Array

  @property
  def layers(self) -> jax.Array:
    """What the stack scans over, its leading axis the layers."""
    return self.hidden_NBMD

  def push(self, new_NBTD: jax.Array, valid_B: jax.Array) -> 'Memory':
    """The memory after T more positions."""
    return Memory(push(self.hidden_NBMD, new_NBTD), valid_B)

  @property
  def length(self) -> int:
    """M, the number of positions."""
    return self.hidden_NBMD.shape[2]


@flax.struct.dataclass
class ProjectedMemory:
  """Keys and values of the last M positions.

  The same mathematics as `Memory` at fixed parameters, without projecting M
  positions again for each segment: for evaluation and generation.

  Attributes:
    keys_NBMHC: keys, oldest first.
    values_NBMHC: values.
    valid_B: int32, how many of the M positions hold text (the last ones).
  """

  keys_NBMHC: jax.Array
  values_NBMHC: jax.Array
  valid_B: jax.Array

  @property
  def layers(self) -> tuple[jax.Array, jax.Array]:
    """What the stack scans over, its leading axis the layers."""
    return self.keys_NBMHC, self.values_NBMHC

  def push(
    self, new: tuple[jax.Array, jax.Array], valid_B: jax.Array
  ) -> 'ProjectedMemory':
    """The memory after T more positions."""
    return ProjectedMemory(*map(push, self.layers, new), valid_B)

  @property
  def length(self) -> int:
    """M, the number of positions."""
    return self.keys_NBMHC.shape[2]


AnyMemory = TypeVar('AnyMemory', Memory, ProjectedMemory)


def init_memory(
  config: ModelConfig, batch_size: int, memory_length: int | None = None
) -> Memory:
  """The memory before the first token: empty, or attended zeros.

  Args:
    config: the model; `memory_start` decides between the two.
    batch_size: number of rows B.
    memory_length: positions M; None takes the model's.
  """
  length = config.memory_length if memory_length is None else memory_length
  shape = (config.n_layers, batch_size, length, config.d_model)
  valid = length if config.memory_start == 'zeros' else 0
  return Memory(
    jnp.zeros(shape, config.dtype), jnp.full(batch_size, valid, jnp.int32)
  )


def push(memory_NBMX: jax.Array, new_NBTX: jax.Array) -> jax.Array:
  """The last M of the M + T positions (axis 2), cut off from the gradient."""
  length = memory_NBMX.shape[2]
  new_NBTX = new_NBTX.astype(memory_NBMX.dtype)
  both = jnp.concatenate([memory_NBMX, new_NBTX], axis=2)
  return jax.lax.stop_gradient(both[:, :, both.shape[2] - length :])


def last_start(starts_BT: jax.Array) -> jax.Array:
  """For each position the last document start at or before it; -1 = none."""
  position_T = jnp.arange(starts_BT.shape[1], dtype=jnp.int32)
  marked_BT = jnp.where(starts_BT, position_T, -1)
  return jax.lax.cummax(marked_BT, axis=1)


def visibility(
  valid_B: jax.Array,
  starts_BT: jax.Array | None,
  *,
  memory_length: int,
  segment_length: int,
  attention_span: int | None,
) -> jax.Array:
  """The first key that each query sees, int32 [B, T].

  Keys are numbered 0..M+T-1, memory first. Query i sees key j exactly when
  first[b, i] <= j <= M + i. This is the only mask of the library: memory that
  is still filling, spans of equal length and documents are all instances.

  Args:
    valid_B: valid positions of the memory.
    starts_BT: True where a token begins a document; None = nowhere.
    memory_length: M.
    segment_length: T.
    attention_span: keys seen by a query, itself included; None = all.
  """
  position_T = jnp.arange(segment_length, dtype=jnp.int32)
  first_BT = (memory_length - valid_B)[:, None] + 0 * position_T
  if attention_span is not None:
    reach_T = memory_length + position_T + 1 - attention_span
    first_BT = jnp.maximum(first_BT, reach_T)
  if starts_BT is not None:
    start_BT = last_start(starts_BT)
    document_BT = jnp.where(start_BT >= 0, memory_length + start_BT, 0)
    first_BT = jnp.maximum(first_BT, document_BT)
  return first_BT


def valid_after(
  valid_B: jax.Array,
  starts_BT: jax.Array | None,
  *,
  memory_length: int,
  segment_length: int,
) -> jax.Array:
  """Valid positions of the memory after a segment, int32 [B]."""
  known_B = valid_B + segment_length
  if starts_BT is not None:
    start_B = last_start(starts_BT)[:, -1]
    known_B = jnp.where(start_B >= 0, segment_length - start_B, known_B)
  return jnp.minimum(known_B, memory_length)
