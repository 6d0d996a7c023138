"""Rows of hidden states in the registers of a group of warps, on Hopper.

A warp has a row, and each of its threads 4 columns of every 128.
"""

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from txl_jax.ops.hopper import NORM_COLUMNS as COLUMNS
from txl_jax.ops.hopper import NORM_ROWS as ROWS


def _layout() -> Any:
  tiling = plgpu.Tiling(((ROWS, COLUMNS), (COLUMNS // 32,)))
  return plgpu.Layout.TILED(tiling, (-3,), (-2,), -1)


def read(source: Any, *reduced: int) -> jax.Array:
  """An array [4, D], or one that lacks an axis of these, as a result lies."""
  layout = _layout()
  for axis in reduced:
    layout = layout.reduce(axis)
  return plgpu.load(source, layout=layout, optimized=False)


def laid(x: jax.Array) -> jax.Array:
  """Of the shape of rows, and as they lie."""
  return plgpu.layout_cast(x, _layout())


def columns(like: jax.Array) -> jax.Array:
  """The number of each column, uint32."""
  return plgpu.broadcasted_iota(jnp.uint32, like.shape, 1, layout=_layout())


def zeros(D: int) -> jax.Array:
  """Rows of zeros, float32."""
  return laid(jnp.zeros((ROWS, D), jnp.float32))


def wide(source: Any) -> jax.Array:
  """Rows from shared memory, float32."""
  return read(source).astype(jnp.float32)


def line(source: Any) -> jax.Array:
  """Numbers on the device [D], in each row."""
  (D,) = source.shape
  return laid(lax.broadcast_in_dim(read(source, 0), (ROWS, D), [1]))


def in_all(numbers: jax.Array, like: jax.Array) -> jax.Array:
  """A number for each row, in all of its columns."""
  return laid(lax.broadcast_in_dim(numbers, like.shape, [0]))


def mean(x: jax.Array) -> jax.Array:
  """Of each row [4]."""
  return x.sum(axis=1) * (1 / x.shape[1])
