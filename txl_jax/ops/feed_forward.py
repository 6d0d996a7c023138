"""The position-wise feed-forward network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.ops import dropout, hopper
from txl_jax.ops.hopper import KERNEL_SIDE, KERNEL_TILE, MULTIPROCESSORS
from txl_jax.ops.products import apart, product, to_operand, with_weight
from txl_jax.ops.shards import constrain, per_shard

# Two rounds of two blocks a multiprocessor: with fewer, kernels gain where the
# last round is full, and lose elsewhere.
_LEAST_BLOCKS = 2 * 2 * MULTIPROCESSORS


def feed_forward(
  x_BTD: jax.Array,
  w_DF: jax.Array,
  bias_F: jax.Array,
  w_FD: jax.Array,
  seed: jax.Array,
  rate: float,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """dropout(relu(x w + b)) w', [B, T, D].

  Args:
    x_BTD: hidden states.
    w_DF: the inner weight.
    bias_F: the inner bias.
    w_FD: the outer weight.
    seed: of dropout, uint32.
    rate: of dropout.
    implementation: with 'auto' or 'mosaic_gpu' kernels for Hopper compute the
      inner states and their gradient, where `takes_kernels`; else XLA does.
  """
  if takes_kernels(implementation, x_BTD, w_DF):
    words_BT = dropout.row_words(seed, dropout.row_index(x_BTD.shape[:2]))
    return _by_kernels(rate, x_BTD, w_DF, bias_F, w_FD, words_BT)
  inner_BTF = product(x_BTD, w_DF) + bias_F
  return product(dropout.relu_dropout(inner_BTF, seed, rate), w_FD)


def takes_kernels(
  implementation: str, x_BTD: jax.Array, w_DF: jax.Array
) -> bool:
  """Whether kernels take part: on Hopper, in bfloat16, in enough whole tiles.

  Args:
    implementation: as for `feed_forward`.
    x_BTD: hidden states.
    w_DF: the inner weight.
  """
  rows, (D, F) = hopper.rows_for_kernels(implementation, x_BTD), w_DF.shape
  whole = not any((rows % KERNEL_SIDE, F % KERNEL_SIDE, D % KERNEL_TILE))
  enough = rows * F >= _LEAST_BLOCKS * KERNEL_SIDE**2
  return w_DF.dtype == jnp.bfloat16 and whole and enough


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernels(rate: float, *operands: jax.Array) -> jax.Array:
  return _forward(rate, *operands)[0]


def _forward(
  rate: float,
  x_BTD: jax.Array,
  w_DF: jax.Array,
  bias_F: jax.Array,
  w_FD: jax.Array,
  words_BT: jax.Array,
) -> tuple[jax.Array, tuple]:
  # Else weights are cut out of those of all layers for each use, and widened
  # before devices put their parts together.
  w_DF, w_FD = (constrain(w, None, None) for w in apart(w_DF, w_FD))
  inner = per_shard(
    functools.partial(_activated, rate),
    (('rows',), (), (), ('rows',)),
    ('rows',),
  )
  inner_BTF = inner(x_BTD, w_DF, bias_F, words_BT)
  return product(inner_BTF, w_FD), (x_BTD, w_DF, bias_F, w_FD, inner_BTF)


def _backward(
  rate: float, saved: tuple[jax.Array, ...], dout_BTD: jax.Array
) -> tuple[Any, ...]:
  x_BTD, w_DF, bias_F, w_FD, inner_BTF = saved
  of_inner = per_shard(
    functools.partial(_gradient, rate),
    (('rows',), (), ('rows',)),
    ('rows',),
  )
  dinner_BTF, parts_GF = of_inner(dout_BTD, w_FD, inner_BTF)
  dinner_BTF, dw_FD = with_weight(dinner_BTF, inner_BTF, dout_BTD)
  dx_BTD = to_operand(dinner_BTF, w_DF)
  dx_BTD, dw_DF = with_weight(dx_BTD, x_BTD, dinner_BTF)
  dbias_F = parts_GF.sum(0).astype(bias_F.dtype)
  return dx_BTD, dw_DF, dbias_F, dw_FD, None


_by_kernels.defvjp(_forward, _backward)


def _activated(
  rate: float,
  x_BTD: jax.Array,
  w_DF: jax.Array,
  bias_F: jax.Array,
  words_BT: jax.Array,
) -> jax.Array:
  """The inner states of a shard [B, T, F]."""
  # Half a second to import, for GPUs alone.
  from txl_jax.ops import mosaic_feed_forward as kernels

  x_RD, bias_F = _flat(x_BTD), bias_F.astype(jnp.float32)
  inner_RF = kernels.activated(x_RD, w_DF, bias_F, words_BT.ravel(), rate)
  return inner_RF.reshape(*x_BTD.shape[:2], -1)


def _gradient(
  rate: float, dout_BTD: jax.Array, w_FD: jax.Array, inner_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Before bias and ReLU [B, T, F], and sums of its rows [G, F]."""
  from txl_jax.ops import mosaic_feed_forward as kernels

  dinner_RF, parts_GF = kernels.gradient(
    _flat(dout_BTD), w_FD, _flat(inner_BTF), rate
  )
  return dinner_RF.reshape(inner_BTF.shape), parts_GF


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])
