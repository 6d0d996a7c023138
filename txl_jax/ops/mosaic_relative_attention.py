"""Relative attention by the kernels for Hopper, with its gradients.

The forward pass keeps its operands, its result and one number a query. Of the
backward kernels the first goes through the keys, computes the weights again and
writes the gradients of the scores; the others read these, one for the queries
and one for the table.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.errors import InputError
from txl_jax.ops import dropout, shards
from txl_jax.ops.alignment import pad_last
from txl_jax.ops.biases import bias_of_rows, biased, excess
from txl_jax.ops.hopper import KERNEL_WIDTHS
from txl_jax.ops.mosaic_forward import forward
from txl_jax.ops.mosaic_key_gradients import key_gradients
from txl_jax.ops.mosaic_query_gradients import query_gradients
from txl_jax.ops.mosaic_ranges import tiles_of
from txl_jax.ops.mosaic_table_gradient import table_gradient
from txl_jax.ops.mosaic_tiles import TILE

# Queries for which it costs little to keep what rounding takes from values.
_FEW = 8


class _Static(NamedTuple):
  """What is known when it is compiled."""

  n_queries: int  # without padding
  end: int  # M, the key at the place of the first query
  scale: float  # of the scores
  rate: float  # of dropout


def relative_attention(
  q_BTHC: jax.Array,
  k_BKHC: jax.Array,
  v_BKHC: jax.Array,
  table_KD: jax.Array,
  w_r_DHC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  *,
  scale: float,
  dropout_rate: float,
  dropout_seed: jax.Array | None,
) -> jax.Array:
  """The operator of `ops/relative_attention.py`."""
  B, T, H, C = q_BTHC.shape
  M = len(table_KD) - T
  _check(q_BTHC.dtype, C)
  width = next(width for width in KERNEL_WIDTHS if C <= width)
  T_pad, K_pad = _whole_tiles(T), _whole_tiles(M + T)

  # Rows of the table: first those that only padded queries need, last those
  # that only keys meet which no query sees.
  after = _whole_tiles(M) + TILE - M
  table_WD = jnp.pad(table_KD, ((T_pad - T, after), (0, 0)))
  w_r_DHC = jnp.pad(w_r_DHC, ((0, 0), (0, 0), (0, width - C)))
  words_HBT = None
  if dropout_rate:
    rows = dropout.row_index((B, H, T))
    words_HBT = dropout.row_words(dropout_seed, rows).swapaxes(0, 1)
    words_HBT = jnp.pad(words_HBT, ((0, 0), (0, 0), (0, T_pad - T)))
  padding = ((0, 0), (0, T_pad - T))
  first_BT = jnp.pad(first_BT.astype(jnp.int32), padding, mode='edge')
  attend = shards.per_shard(
    functools.partial(_attend_shard, _Static(T, M, scale, dropout_rate)),
    (
      *[('rows', None, 'heads')] * 3,
      *(('rows', 'heads'), ('heads',), ('heads',)),
      *(('rows',), ('heads', 'rows')),
    ),
    ('rows', None, 'heads'),
  )
  out_BTHC = attend(
    _padded(q_BTHC, T_pad, width),
    *(_padded(x, K_pad, width) for x in (k_BKHC, v_BKHC)),
    # Each shard its own, so that no gradient of the whole table is summed.
    jnp.einsum('wd,gdhc->ghwc', table_WD, shards.copies(w_r_DHC, 'rows')),
    *(pad_last(x_HC, width) for x_HC in (u_HC, v_bias_HC)),
    *(first_BT, words_HBT),
  )
  return out_BTHC[:, :T, :, : v_BKHC.shape[-1]]


def _check(dtype: Any, C: int) -> None:
  if dtype != jnp.bfloat16:
    raise InputError(
      "attention_implementation 'mosaic_gpu' needs dtype 'bfloat16', found "
      f'{str(dtype)!r}'
    )
  if C > KERNEL_WIDTHS[-1]:
    raise InputError(
      "attention_implementation 'mosaic_gpu' needs a d_head of at most "
      f'{KERNEL_WIDTHS[-1]}, found {C}'
    )


def _whole_tiles(length: int) -> int:
  return -(-length // TILE) * TILE


def _padded(x_BXHC: jax.Array, length: int, width: int) -> jax.Array:
  """Padded with zeros to this length and width."""
  _, X, _, C = x_BXHC.shape
  return jnp.pad(x_BXHC, ((0, 0), (0, length - X), (0, 0), (0, width - C)))


def _attend_shard(
  static: _Static,
  q_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_1HWC: jax.Array,
  *others: Any,
) -> jax.Array:
  """`_attend` with the shard's own table."""
  return _attend(static, q_BTHC, k_BLHC, v_BLHC, r_1HWC[0], *others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  static: _Static,
  q_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  words_HBT: jax.Array | None,
) -> jax.Array:
  """The attended values [B, T, H, C], all sizes padded."""
  operands = q_BTHC, k_BLHC, v_BLHC, r_HWC, u_HC, v_bias_HC
  return _forward(static, *operands, first_BT, words_HBT)[0]


def _forward(
  static: _Static,
  q_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  words_HBT: jax.Array | None,
) -> tuple[jax.Array, tuple]:
  qu_BTHC = biased(q_BTHC, u_HC, static.scale)
  excess_HC = excess(u_HC, v_bias_HC, static.scale)
  bias_HW = bias_of_rows(excess_HC, r_HWC)
  operands = k_BLHC, v_BLHC, r_HWC, bias_HW, first_BT
  places_2 = np.array([static.end, _start(qu_BTHC)], np.int32)
  tiles_BIS3 = _tiles(static, first_BT, k_BLHC)
  # Of rounded values `_mean` is too coarse where gradients of scores cancel.
  rest = static.n_queries <= _FEW
  split = _once_a_layer(forward, rate=static.rate, rest=rest)(
    *(qu_BTHC, *operands, tiles_BIS3, jnp.asarray(places_2), words_HBT)
  )
  found = [x[0] for x in split]
  return found[0], (qu_BTHC, u_HC, v_bias_HC, *operands, words_HBT, *found)


def _start(qu_BTHC: jax.Array) -> int:
  """The row of the table where the window of queries and keys from 0 begins."""
  return qu_BTHC.shape[1] - TILE


def _tiles(
  static: _Static, first_BT: jax.Array, k_BLHC: jax.Array
) -> jax.Array:
  end, L = jnp.int32(static.end), k_BLHC.shape[1]
  return tiles_of(first_BT, end, static.n_queries, L, 1)


@functools.cache
def _once_a_layer(function: Any, **options: Any) -> Any:
  """Compiled for itself, so that it is lowered once for all layers."""
  return jax.jit(functools.partial(function, **options))


def _mean(dout_BTHC: jax.Array, *values: jax.Array) -> jax.Array:
  """The mean of the weights' gradients, weighted by them [H, B, T].

  Args:
    dout_BTHC: gradient of the attended values.
    *values: these, and what rounding took from them if it is known.
  """
  wide = (x.astype(jnp.float32) for x in values)
  mean_BTH = (dout_BTHC.astype(jnp.float32) * sum(wide)).sum(-1)
  return mean_BTH.transpose(2, 0, 1)


def _backward(
  static: _Static, saved: tuple, dout_BTHC: jax.Array
) -> tuple[Any, ...]:
  qu_BTHC, u_HC, v_bias_HC, k_BLHC, v_BLHC, r_HWC = saved[:6]
  bias_HW, first_BT, words_HBT, out_BTHC, lse_HBT, *rest = saved[6:]
  mean_HBT = _mean(dout_BTHC, out_BTHC, *rest)
  tiles_BIS3 = _tiles(static, first_BT, k_BLHC)
  start = _start(qu_BTHC)
  of_keys = _once_a_layer(
    key_gradients, end=static.end, start=start, rate=static.rate
  )
  dk_BLHC, dv_BLHC, dscore_BHLT = of_keys(
    *(qu_BTHC, dout_BTHC, k_BLHC, v_BLHC, r_HWC, bias_HW, first_BT),
    *(lse_HBT, mean_HBT, tiles_BIS3, words_HBT),
  )
  of_queries = _once_a_layer(query_gradients, start=start, scale=static.scale)
  dq_BTHC, sums_2BJHC = of_queries(dscore_BHLT, k_BLHC, r_HWC, tiles_BIS3)
  of_table = _once_a_layer(table_gradient, n_rows=r_HWC.shape[1])
  # The queries with the content bias are kept, not those without any.
  qv_BTHC = biased(qu_BTHC, excess(u_HC, v_bias_HC, static.scale), 1.0)
  dr_HWC = of_table(dscore_BHLT, qv_BTHC, tiles_BIS3).astype(r_HWC.dtype)
  # Together, so that no array of the scores' size waits for a sum over layers.
  dr_HWC, dq_BTHC, sums_2BJHC, dk_BLHC, dv_BLHC = jax.lax.optimization_barrier(
    (dr_HWC, dq_BTHC, sums_2BJHC, dk_BLHC, dv_BLHC)
  )
  of_u_HC, of_v_bias_HC = sums_2BJHC.sum((1, 2))
  of_biases = of_u_HC.astype(u_HC.dtype), of_v_bias_HC.astype(v_bias_HC.dtype)
  return dq_BTHC, dk_BLHC, dv_BLHC, dr_HWC, *of_biases, None, None


_attend.defvjp(_forward, _backward)
