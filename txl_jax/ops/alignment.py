"""Sizes that matrix units like: rows of a multiple of 16 bytes."""

import jax
import jax.numpy as jnp

ALIGNMENT = 8


def aligned(size: int) -> int:
  """The size after padding; sizes under the alignment stay as they are."""
  return size if size < ALIGNMENT else -(-size // ALIGNMENT) * ALIGNMENT


def pad(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The array with zeros at the ends of its axes."""
  return jnp.pad(x, [(0, n - m) for m, n in zip(x.shape, shape, strict=True)])


def pad_last(x: jax.Array, width: int) -> jax.Array:
  """The array with zeros at the end of its last axis."""
  return pad(x, (*x.shape[:-1], width))
