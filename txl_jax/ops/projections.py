"""The projections of a layer's input to queries, keys and values."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.ops import hopper, products
from txl_jax.ops.hopper import KERNEL_SIDE, KERNEL_TILE, MULTIPROCESSORS
from txl_jax.ops.shards import constrain, n_shards, per_shard

# Two blocks a multiprocessor.
_LEAST_BLOCKS = 2 * MULTIPROCESSORS
# Copies to where products read begin and end at multiples of this.
_COPIED = 8


def projections(
  memory_BMD: jax.Array,
  hidden_BTD: jax.Array,
  weights: tuple[jax.Array, jax.Array, jax.Array],
  length: int,
  *,
  implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Queries of the segment [B, T, H, C], keys and values, and the segment.

  The segment is returned as it is, for the residual connection: so gradients of
  all that it is used for can be added up together.

  Args:
    memory_BMD: hidden states of the memory.
    hidden_BTD: of the segment.
    weights: [D, H, C] of queries, keys and values.
    length: of keys and values [B, length, H, C], M + T or more; the rest is
      zeros.
    implementation: with 'auto' or 'mosaic_gpu' kernels for Hopper compute the
      gradient of the segment, and most often the projections too, where
      `takes_kernel`; else XLA does.
  """
  operands = memory_BMD, hidden_BTD, *weights
  if takes_kernel(implementation, memory_BMD, hidden_BTD, weights[0], length):
    return _with_kernel(length, *operands)
  return *_projected(length, *operands), hidden_BTD


def _projected(
  length: int,
  memory_BMD: jax.Array,
  hidden_BTD: jax.Array,
  w_q: jax.Array,
  *others: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries, keys and values."""
  k_BLHC, v_BLHC = (
    products.project_both(memory_BMD, hidden_BTD, w, length) for w in others
  )
  return products.project(hidden_BTD, w_q), k_BLHC, v_BLHC


def takes_kernel(
  implementation: str,
  memory_BMD: jax.Array,
  hidden_BTD: jax.Array,
  w_DHC: jax.Array,
  length: int,
) -> bool:
  """Whether kernels do: on Hopper, in bfloat16, for enough whole tiles.

  Args:
    implementation: as for `projections`.
    memory_BMD: hidden states of the memory.
    hidden_BTD: of the segment.
    w_DHC: a weight.
    length: of keys and values.
  """
  rows = hopper.rows_for_kernels(implementation, hidden_BTD)
  (_, T, D), (_, H, C) = hidden_BTD.shape, w_DHC.shape
  left = rows % KERNEL_SIDE, T % KERNEL_TILE, D % KERNEL_SIDE
  left += H * C % KERNEL_TILE, memory_BMD.shape[1] % _COPIED, length % _COPIED
  enough = rows * D >= _LEAST_BLOCKS * KERNEL_SIDE**2
  alike = memory_BMD.dtype == w_DHC.dtype == jnp.bfloat16
  return alike and not any(left) and enough


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_kernel(length: int, *operands: jax.Array) -> tuple[jax.Array, ...]:
  return _forward(length, *operands)[0]


def _forward(
  length: int,
  memory_BMD: jax.Array,
  hidden_BTD: jax.Array,
  *weights: jax.Array,
) -> tuple[tuple[jax.Array, ...], tuple]:
  # As in ops/feed_forward.py.
  weights = [constrain(w, None, None, None) for w in products.apart(*weights)]
  operands = memory_BMD, hidden_BTD, *weights
  if not _kernel_projects(length, *operands):
    whole_BLD = products.joined(length, memory_BMD, hidden_BTD)
    return (*_projected(length, *operands), hidden_BTD), (whole_BLD, operands)
  run = per_shard(_project, (('rows',), ('rows',), ()), ('rows',))
  *projected, whole_BLD = run(memory_BMD, hidden_BTD, _matrices(weights))
  heads = weights[0].shape[1:]
  projected = [x.reshape(*x.shape[:2], *heads) for x in projected]
  return (*projected, hidden_BTD), (whole_BLD, operands)


def _kernel_projects(
  length: int, memory_BMD: jax.Array, hidden_BTD: jax.Array, *weights: jax.Array
) -> bool:
  """Whether a kernel projects, too, where one computes the gradient.

  It does if there is a memory to be put before the segment, in whole tiles.
  """
  (B, M, _), E = memory_BMD.shape, math.prod(weights[0].shape[1:])
  rows = B // n_shards('rows') * M
  left = M % KERNEL_TILE, rows % KERNEL_SIDE, E % KERNEL_SIDE
  return M > 0 and not any(left) and length == M + hidden_BTD.shape[1]


def _project(*operands: Any) -> tuple[jax.Array, ...]:
  """Queries, keys and values of a shard, and memory and segment as one."""
  from txl_jax.ops import mosaic_projections as kernels

  with jax.named_scope('projections'):
    return kernels.project(*operands)


def _matrices(weights: list[jax.Array]) -> tuple[jax.Array, ...]:
  return tuple(w_DHC.reshape(len(w_DHC), -1) for w_DHC in weights)


def _backward(
  length: int, saved: tuple[Any, ...], gradients: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
  del length
  whole_BLD, (memory_BMD, hidden_BTD, *weights) = saved
  M = memory_BMD.shape[1]
  *gradients, around_BTD = gradients
  dq_BTE, dk_BLE, dv_BLE = (x.reshape(*x.shape[:2], -1) for x in gradients)
  _, w_k, w_v = matrices = _matrices(weights)
  run = per_shard(
    functools.partial(_gradient, M),
    (*[('rows',)] * 3, (), ('rows',)),
    ('rows',),
  )
  dhidden_BTD = run(dq_BTE, dk_BLE, dv_BLE, matrices, around_BTD)
  of_weights = []
  for x, gradient in (
    (hidden_BTD, dq_BTE),
    (whole_BLD, dk_BLE),
    (whole_BLD, dv_BLE),
  ):
    dhidden_BTD, dw_DE = products.with_weight(dhidden_BTD, x, gradient)
    of_weights.append(dw_DE.reshape(weights[0].shape))
  # It is hardly ever asked for.
  dmemory_BMD = products.to_operand(dk_BLE[:, :M], w_k)
  dmemory_BMD += products.to_operand(dv_BLE[:, :M], w_v)
  return dmemory_BMD, dhidden_BTD, *of_weights


_with_kernel.defvjp(_forward, _backward)


def _gradient(n_before: int, *operands: Any) -> jax.Array:
  """That of a shard's segment [B, T, D]."""
  # Half a second to import, for GPUs alone.
  from txl_jax.ops import mosaic_projections as kernels

  # The name tells it from the kernels of attention.
  with jax.named_scope('projections'):
    return kernels.gradient(*operands, n_before)
