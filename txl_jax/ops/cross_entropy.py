"""Cross-entropy of rows with a large vocabulary, in bounded memory.

The logits of all tokens at once would be the largest array of the whole
training step. They are computed for some tokens at a time instead, and again in
the backward pass, which keeps one number per token: the log-sum-exp of its
logits. That is four matrix products instead of three. Taking the gradients in
the forward pass would save the fourth, but the gradient of the weights is a sum
that the cotangent of each token's loss stands inside of, and it is not known
there.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.ops import shards
from txl_jax.ops.logits import (
  accumulator,
  row_gradients,
  row_losses,
  takes_kernels,
)

LOGITS_AT_ONCE = 2**26  # 256 MiB in float32
# Where kernels write no logits, only their gradients: 512 MiB in bfloat16.
_GRADIENTS_AT_ONCE = 2**28
ALIGNMENT = 128  # of vocabularies and rows, a tile of the matrix units


def pad_vocabulary(
  weight_VE: jax.Array, bias_V: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Rounds a vocabulary up to a multiple of 128.

  The words that are added have the lowest finite bias, thus probability 0, and
  no gradient. The weights are divided over the logical axis 'vocabulary'.
  """
  extra = -len(bias_V) % ALIGNMENT
  lowest = jnp.finfo(bias_V.dtype).min
  weight_VE = jnp.pad(weight_VE, ((0, extra), (0, 0)))
  bias_V = jnp.pad(bias_V, (0, extra), constant_values=lowest)
  return shards.constrain(weight_VE, 'vocabulary', None), bias_V


def cross_entropy(
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """Negative log-likelihoods [X] of one target per row, natural log.

  Matrix products run in the dtype of the hidden states and accumulate in
  float32 or wider, as all else is computed.

  Args:
    hidden_XE: rows.
    weight_VE: one vector for each word.
    bias_V: one number for each word.
    targets_X: int, from 0 to V - 1.
    implementation: with 'auto' or 'mosaic_gpu' kernels for Hopper take part,
      where `takes_kernels`; else XLA computes it all.

  Returns:
    One loss per row, float32 or wider.
  """
  kernels = takes_kernels(implementation, hidden_XE, len(bias_V))
  return _cross_entropy(kernels, hidden_XE, weight_VE, bias_V, targets_X)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(kernels: bool, *operands: jax.Array) -> jax.Array:
  return _forward(kernels, *operands)[0]


def _forward(
  kernels: bool,
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
) -> tuple[jax.Array, tuple]:
  cast_VE = weight_VE.astype(hidden_XE.dtype)

  def losses(_: None, rows: tuple) -> tuple[None, tuple]:
    hidden_CE, targets_C = rows
    return None, row_losses(hidden_CE, cast_VE, bias_V, targets_C, kernels)

  chunks = _split(kernels, len(bias_V), hidden_XE, targets_X)
  _, (nll, lse) = _scan(losses, None, chunks)
  nll_X = nll.reshape(-1)[: len(targets_X)]
  return nll_X, (hidden_XE, weight_VE, bias_V, targets_X, lse)


def _backward(kernels: bool, saved: tuple, cotangent_X: jax.Array) -> tuple:
  hidden_XE, weight_VE, bias_V, targets_X, lse = saved
  cast_VE = weight_VE.astype(hidden_XE.dtype)

  def gradients(sums: tuple, rows: tuple) -> tuple[tuple, jax.Array]:
    hidden_CE, targets_C, cotangent_C, lse_C = rows
    d_hidden_CE, *of_weights = row_gradients(
      *(hidden_CE, cast_VE, bias_V, targets_C, lse_C, cotangent_C), kernels
    )
    return jax.tree.map(jnp.add, sums, tuple(of_weights)), d_hidden_CE

  chunks = _split(kernels, len(bias_V), hidden_XE, targets_X, cotangent_X)
  wide = accumulator(hidden_XE)
  zeros = (jnp.zeros_like(weight_VE, wide), jnp.zeros_like(bias_V, wide))
  sums, d_hidden = _scan(gradients, zeros, (*chunks, lse))
  d_hidden_XE = d_hidden.reshape(-1, hidden_XE.shape[-1])[: len(targets_X)]
  d_weight_VE, d_bias_V = sums
  return (
    d_hidden_XE,
    d_weight_VE.astype(weight_VE.dtype),
    d_bias_V.astype(bias_V.dtype),
    None,
  )


_cross_entropy.defvjp(_forward, _backward)


def _split(
  kernels: bool, n_words: int, *rows: jax.Array
) -> tuple[jax.Array, ...]:
  """Cuts rows [X, ...] into equal chunks [chunks, rows, ...], zeros at the end.

  What is written for each word of a chunk's rows stays below the bound.
  """
  n_rows = len(rows[0])
  at_once = _GRADIENTS_AT_ONCE if kernels else LOGITS_AT_ONCE
  n_chunks = max(1, math.ceil(n_rows * n_words / at_once))
  length = math.ceil(n_rows / n_chunks)
  if n_chunks > 1:
    length = min(round_up(length), n_rows)
    n_chunks = math.ceil(n_rows / length)
  extra = n_chunks * length - n_rows

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(n_chunks, length, *x.shape[1:])

  return tuple(map(split, rows))


def round_up(n: int) -> int:
  """The next multiple of the alignment."""
  return math.ceil(n / ALIGNMENT) * ALIGNMENT


def _scan(step: Any, carry: Any, chunks: tuple[jax.Array, ...]) -> tuple:
  """`jax.lax.scan`, without a loop around a single step."""
  if len(chunks[0]) == 1:
    carry, result = step(carry, tuple(x[0] for x in chunks))
    return carry, jax.tree.map(lambda x: x[None], result)
  return jax.lax.scan(step, carry, chunks)
