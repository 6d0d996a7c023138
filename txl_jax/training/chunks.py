"""Rows in chunks: what gradient accumulation scans over.

Chunk c of n holds the rows c, c + n, c + 2n, ...: so each chunk lies on all
devices that the rows are divided among.
"""

from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.data.streams import Batch
from txl_jax.model.memory import Memory


def split_batch(batch: Batch, n: int) -> Batch:
  """[S, B, T] as [n, S, B / n, T]."""
  return jax.tree.map(lambda x: _split(x, n, 1), batch)


def split_memory(memory: Memory, n: int) -> Memory:
  """Each array with a leading axis of n chunks."""
  return jax.tree.map(lambda x: _split(x, n, min(x.ndim - 1, 1)), memory)


def join_memory(memory: Memory) -> Memory:
  """The inverse of `split_memory`."""
  return jax.tree.map(lambda x: _join(x, min(x.ndim - 2, 1)), memory)


def _split(x: jax.Array, n: int, axis: int) -> jax.Array:
  shape = x.shape
  split = x.reshape(*shape[:axis], shape[axis] // n, n, *shape[axis + 1 :])
  return jnp.moveaxis(split, axis + 1, 0)


def _join(x: Any, axis: int) -> jax.Array:
  joined = jnp.moveaxis(x, 0, axis + 1)
  shape = joined.shape
  return joined.reshape(*shape[:axis], -1, *shape[axis + 2 :])
