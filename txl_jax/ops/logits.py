"""Losses of few enough rows that there is room for their logits.

Kernels for Hopper write no logits at all, and only their gradients.
"""

from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.ops import hopper, shards
from txl_jax.ops.alignment import pad
from txl_jax.ops.hopper import KERNEL_SIDE, KERNEL_TILE, MULTIPROCESSORS

# As for the feed-forward network, whose kernels have such blocks.
_LEAST_BLOCKS = 2 * 2 * MULTIPROCESSORS


def takes_kernels(
  implementation: str, hidden_XE: jax.Array, n_words: int
) -> bool:
  """Whether kernels take part: on Hopper, in bfloat16, for enough logits.

  To be asked outside of what is differentiated: for a backward pass it would
  be answered elsewhere, where rows may be divided that here are a shard's.

  Args:
    implementation: 'auto', 'mosaic_gpu', or the name of another.
    hidden_XE: rows.
    n_words: V.
  """
  return (
    implementation in ('auto', 'mosaic_gpu')
    and hidden_XE.dtype == jnp.bfloat16
    and n_words % KERNEL_SIDE == 0
    and len(hidden_XE) * n_words >= _LEAST_BLOCKS * KERNEL_SIDE**2
    and not (shards.is_divided('rows') or shards.is_divided('vocabulary'))
    and hopper.on_hopper()
  )


def row_losses(
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
  kernels: bool,
) -> tuple[jax.Array, jax.Array]:
  """Losses and log-sum-exps [X] of few enough rows."""
  if kernels:
    lse_X = _log_sum_exps_by_kernel(hidden_XE, weight_VE, bias_V)
    # Fewer numbers to fetch than those logits would be to find.
    words_XE, wide = weight_VE[targets_X], accumulator(hidden_XE)
    logit_X = (hidden_XE.astype(wide) * words_XE.astype(wide)).sum(-1)
    return lse_X - logit_X - bias_V[targets_X].astype(wide), lse_X
  logits_XV = _logits(hidden_XE, weight_VE, bias_V)
  lse_X = jax.nn.logsumexp(logits_XV, axis=-1)
  return lse_X - _at_targets(logits_XV, targets_X), lse_X


def _at_targets(logits_XV: jax.Array, targets_X: jax.Array) -> jax.Array:
  """The targets' logits [X]."""
  if shards.is_divided('vocabulary'):
    # A gather would bring the logits together.
    return jnp.where(_hits(targets_X, logits_XV), logits_XV, 0).sum(-1)
  return jnp.take_along_axis(
    logits_XV, targets_X[:, None], axis=1, mode='fill', fill_value=0
  )[:, 0]


def row_gradients(
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
  lse_X: jax.Array,
  cotangent_X: jax.Array,
  kernels: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients for hidden states, weights and biases from those of the losses.

  That of the hidden states has their dtype, the others are float32 or wider.
  """
  gradient_XV, d_bias_V = (
    _gradients_by_kernel if kernels else _gradients_by_xla
  )(hidden_XE, weight_VE, bias_V, targets_X, lse_X, cotangent_X)
  wide = accumulator(hidden_XE)
  return (
    jnp.einsum('xv,ve->xe', gradient_XV, weight_VE),
    jnp.einsum(
      'xv,xe->ve', gradient_XV, hidden_XE, preferred_element_type=wide
    ),
    d_bias_V,
  )


def _gradients_by_xla(
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
  lse_X: jax.Array,
  cotangent_X: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Gradients of the logits [X, V], and of the biases."""
  logits_XV = _logits(hidden_XE, weight_VE, bias_V)
  gradient_XV = jnp.exp(logits_XV - lse_X[:, None]) - _hits(
    targets_X, logits_XV
  )
  gradient_XV = (gradient_XV * cotangent_X[:, None]).astype(hidden_XE.dtype)
  return gradient_XV, gradient_XV.sum(0, dtype=accumulator(hidden_XE))


def _log_sum_exps_by_kernel(
  hidden_XE: jax.Array, weight_VE: jax.Array, bias_V: jax.Array
) -> jax.Array:
  """Of each row's logits [X]."""
  # Half a second to import, for GPUs alone.
  from txl_jax.ops import mosaic_cross_entropy as kernels

  parts_GX = kernels.log_sum_exps(*_whole_tiles(hidden_XE, weight_VE, bias_V))
  return jax.nn.logsumexp(parts_GX, axis=0)[: len(hidden_XE)]


def _gradients_by_kernel(
  hidden_XE: jax.Array,
  weight_VE: jax.Array,
  bias_V: jax.Array,
  targets_X: jax.Array,
  lse_X: jax.Array,
  cotangent_X: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """What `_gradients_by_xla` finds."""
  from txl_jax.ops import mosaic_cross_entropy as kernels

  operands, n_rows = _whole_tiles(hidden_XE, weight_VE, bias_V), len(lse_X)
  targets_X, cotangent_X = (
    pad(x, operands[0].shape[:1]) for x in (targets_X, cotangent_X)
  )
  # Rows that are added must have no probabilities, for 0 * inf is not 0.
  added = len(targets_X) - n_rows
  lse_X = jnp.pad(lse_X, (0, added), constant_values=jnp.inf)
  gradient_XV, parts_GV = kernels.logit_gradients(
    *operands, targets_X, lse_X, cotangent_X
  )
  return gradient_XV[:n_rows], parts_GV.sum(0)


def _whole_tiles(
  hidden_XE: jax.Array, weight_VE: jax.Array, bias_V: jax.Array
) -> tuple[jax.Array, ...]:
  """Padded with zeros to what kernels take."""
  X, E = hidden_XE.shape
  V = len(bias_V)
  rows, width = -(-X // KERNEL_SIDE), -(-E // KERNEL_TILE)
  rows, width = rows * KERNEL_SIDE, width * KERNEL_TILE
  hidden_XE = pad(hidden_XE, (rows, width))
  # Computed, as XLA would hand on a part of a larger array where it lies, and
  # operands of a kernel must begin at a multiple of 256 bytes.
  lowest = jnp.finfo(jnp.float32).min
  bias_V = jnp.maximum(bias_V.astype(jnp.float32), lowest)
  return hidden_XE, pad(weight_VE, (V, width)), bias_V


def accumulator(x: jax.Array) -> Any:
  """The dtype that sums of products are taken in."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _logits(
  hidden_XE: jax.Array, weight_VE: jax.Array, bias_V: jax.Array
) -> jax.Array:
  wide = accumulator(hidden_XE)
  logits_XV = jnp.einsum(
    'xe,ve->xv', hidden_XE, weight_VE, preferred_element_type=wide
  )
  return logits_XV + bias_V.astype(wide)


def _hits(targets_X: jax.Array, logits_XV: jax.Array) -> jax.Array:
  word_XV = jax.lax.broadcasted_iota(jnp.int32, logits_XV.shape, 1)
  return word_XV == targets_X[:, None]
