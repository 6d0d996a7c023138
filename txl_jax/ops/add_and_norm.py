"""The end of a sublayer: dropout, residual connection and layer norm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from txl_jax.ops import dropout, hopper
from txl_jax.ops.layer_norm import layer_norm
from txl_jax.ops.shards import per_shard

# Tokens of a device for which each block of the kernels has several steps.
_LEAST_ROWS = 4096


class _Static(NamedTuple):
  """What is known when it is compiled."""

  rate: float
  epsilon: float
  n_uses: int


def add_and_norm(
  x_BTD: jax.Array,
  branch_BTD: jax.Array,
  bias_D: jax.Array | None,
  scale_D: jax.Array,
  shift_D: jax.Array,
  seed: jax.Array,
  rate: float,
  *,
  epsilon: float,
  n_features: int,
  n_uses: int = 1,
  implementation: str = 'auto',
) -> tuple[jax.Array, ...]:
  """layer_norm(x + dropout(branch + bias)) [B, T, D], once for each use.

  Args:
    x_BTD: what goes around the sublayer.
    branch_BTD: what comes out of it.
    bias_D: added to that; None = nothing.
    scale_D: the layer norm's gain.
    shift_D: its shift.
    seed: of dropout, uint32.
    rate: of dropout.
    epsilon: added to the variance.
    n_features: those that count, the first, as for `layer_norm`.
    n_uses: how often the result is used: a kernel adds up the gradients.
    implementation: with 'auto' or 'mosaic_gpu' kernels for Hopper compute it
      and its gradient, where `takes_kernels`; else XLA does.
  """
  D = x_BTD.shape[-1]
  if n_features == D and takes_kernels(implementation, x_BTD, branch_BTD):
    if bias_D is None:
      bias_D = jnp.zeros(D)
    words_BT = dropout.row_words(seed, dropout.row_index(x_BTD.shape[:2]))
    static = _Static(rate, epsilon, n_uses)
    weights = bias_D, scale_D, shift_D
    return _by_kernels(static, x_BTD, branch_BTD, *weights, words_BT)
  if bias_D is not None:
    branch_BTD = branch_BTD + bias_D
  branch_BTD = dropout.dropout(branch_BTD, seed, rate)
  total_BTD = x_BTD + branch_BTD
  return (
    layer_norm(total_BTD, scale_D, shift_D, epsilon, n_features),
  ) * n_uses


def takes_kernels(
  implementation: str, x_BTD: jax.Array, branch_BTD: jax.Array
) -> bool:
  """Whether kernels do it: on Hopper, in bfloat16, for many whole rows.

  Args:
    implementation: as for `add_and_norm`.
    x_BTD: what goes around the sublayer.
    branch_BTD: what comes out of it.
  """
  rows, D = hopper.rows_for_kernels(implementation, x_BTD), x_BTD.shape[-1]
  whole = rows % hopper.NORM_ROWS == D % hopper.NORM_COLUMNS == 0
  fits = rows >= _LEAST_ROWS and D <= hopper.NORM_WIDEST
  return whole and fits and x_BTD.dtype == branch_BTD.dtype


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernels(static: _Static, *operands: jax.Array) -> tuple[jax.Array, ...]:
  return _forward(static, *operands)[0]


def _forward(
  static: _Static, *operands: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple]:
  run = per_shard(
    functools.partial(_normed, static),
    (('rows',), ('rows',), (), (), (), ('rows',)),
    ('rows',),
  )
  out_BTD, total_BTD = run(*operands)
  _, _, *others = operands
  return (out_BTD,) * static.n_uses, (total_BTD, *others)


def _backward(
  static: _Static, saved: tuple[jax.Array, ...], gradients: tuple
) -> tuple[Any, ...]:
  total_BTD, bias_D, scale_D, shift_D, words_BT = saved
  run = per_shard(
    functools.partial(_gradients, static),
    (('rows',), ('rows',), (), ('rows',)),
    ('rows',),
  )
  dx_BTD, dbranch_BTD, parts_G3D = run(gradients, total_BTD, scale_D, words_BT)
  dscale_D, dshift_D, dbias_D = parts_G3D.sum(0)
  return (
    *(dx_BTD, dbranch_BTD, dbias_D.astype(bias_D.dtype)),
    *(dscale_D.astype(scale_D.dtype), dshift_D.astype(shift_D.dtype), None),
  )


_by_kernels.defvjp(_forward, _backward)


def _normed(
  static: _Static,
  x_BTD: jax.Array,
  branch_BTD: jax.Array,
  bias_D: jax.Array,
  scale_D: jax.Array,
  shift_D: jax.Array,
  words_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The result of a shard and what is normalised, both [B, T, D]."""
  # Half a second to import, for GPUs alone.
  from txl_jax.ops import mosaic_layer_norm as kernels

  found = kernels.forward(
    *(_flat(x_BTD), _flat(branch_BTD)),
    *(x_D.astype(jnp.float32) for x_D in (bias_D, scale_D, shift_D)),
    words_BT.ravel(),
    rate=static.rate,
    epsilon=static.epsilon,
  )
  return tuple(x.reshape(x_BTD.shape) for x in found)


def _gradients(
  static: _Static,
  gradients: tuple[jax.Array, ...],
  total_BTD: jax.Array,
  scale_D: jax.Array,
  words_BT: jax.Array,
) -> tuple[jax.Array, ...]:
  """Those of both terms [B, T, D], and parts of sums over rows [G, 3, D]."""
  from txl_jax.ops import mosaic_layer_norm as kernels

  *found, parts_G3D = kernels.backward(
    tuple(map(_flat, gradients)),
    _flat(total_BTD),
    scale_D.astype(jnp.float32),
    words_BT.ravel(),
    rate=static.rate,
    epsilon=static.epsilon,
  )
  return *(x.reshape(total_BTD.shape) for x in found), parts_G3D


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])
