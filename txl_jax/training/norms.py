"""Norms of parameters and gradients, by group."""

from typing import Any

import jax
import jax.numpy as jnp


def group_norms(tree: Any) -> dict[str, jax.Array]:
  """The norm of each group of a tree like the parameters, at least float32.

  A group is a part of the model (`embedding`, `softmax`) or of its layers, all
  layers together (`layers/attention`, `layers/feed_forward`).
  """
  squares: dict[str, jax.Array] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    name = _group([key.key for key in path])
    squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(wide))
  return {name: jnp.sqrt(square) for name, square in squares.items()}


def _group(path: list[str]) -> str:
  return '/'.join(path[:2] if path[0] == 'layers' else path[:1])


def total_norm(norms: dict[str, jax.Array]) -> jax.Array:
  """The norm of all groups together."""
  return jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
