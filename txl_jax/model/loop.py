"""The loop over layers: compiled once for all of them, or written out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def scan_layers(
  step: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
  own: Any,
  n_layers: int,
  *,
  unroll: int | None,
  remat: bool,
) -> tuple[Any, Any]:
  """As `jax.lax.scan` over the layers.

  Written out, the loop compiles longer; but what the backward pass needs stays
  where the forward pass wrote it, while a loop copies it into arrays of all
  layers and out of them (docs/performance.md tells what that costs).

  Args:
    step: (carry, own) -> (carry, out): a layer.
    carry: of the first.
    own: what each layer has of its own, its leading axis the layers.
    n_layers: N.
    unroll: layers that are written out; all of them leave no loop. None writes
      out all of them on a GPU and one elsewhere.
    remat: whether the backward pass computes each layer again.
  """
  if unroll is None:
    unroll = n_layers if jax.default_backend() == 'gpu' else 1
  whole = unroll >= n_layers
  if remat:
    # Inside a loop nothing can be shared between the passes anyhow.
    step = jax.checkpoint(step, prevent_cse=whole)
  if not whole:
    return jax.lax.scan(step, carry, own, unroll=unroll)
  outs = []
  for layer in unstack(own, n_layers):
    carry, out = step(carry, layer)
    outs.append(out)
  return carry, jax.tree.map(lambda *leaves: stack(leaves), *outs)


def unstack(tree: Any, n: int) -> list[Any]:
  """The parts of a tree along the leading axis of its leaves.

  By `split`, whose gradient is one concatenation; that of n slices would be n
  padded arrays to add.
  """
  leaves, structure = jax.tree.flatten(tree)
  parts = [jax.lax.split(leaf, (1,) * n) for leaf in leaves]
  return [
    jax.tree.unflatten(structure, [part[i].squeeze(0) for part in parts])
    for i in range(n)
  ]


def stack(parts: Sequence[jax.Array]) -> jax.Array:
  """As `jnp.stack`, part by part: XLA's concatenation is slow on a GPU."""
  whole = jnp.zeros((len(parts), *parts[0].shape), parts[0].dtype)
  for n, part in enumerate(parts):
    whole = jax.lax.dynamic_update_index_in_dim(whole, part, n, 0)
  return whole
