"""Relative attention by the kernels for Hopper, with its gradients.

The forward pass keeps its operands, its result and one number a query. The
backward kernel computes the weights again and writes them once, with the
gradients of the scores; a third kernel sums them for keys and values, and what
remains are matrix products.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.errors import InputError
from txl_jax.ops import dropout, shards
from txl_jax.ops.hopper import KERNEL_WIDTHS
from txl_jax.ops.mosaic_backward import score_gradients
from txl_jax.ops.mosaic_forward import forward, tiles_of
from txl_jax.ops.mosaic_key_gradients import sum_over_queries
from txl_jax.ops.mosaic_tiles import TILE


class _Static(NamedTuple):
  """What is known when it is compiled."""

  n_queries: int  # without padding
  end: int  # M, the key at the place of the first query
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

  def queries(bias_HC: jax.Array) -> jax.Array:
    wide = q_BTHC.astype(jnp.float32) + bias_HC.astype(jnp.float32)
    scaled = (wide * scale).astype(q_BTHC.dtype)
    return _padded(scaled, T_pad, width)

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
    functools.partial(_attend, _Static(T, M, dropout_rate)),
    (
      *[('rows', None, 'heads')] * 4,
      *(('heads',), ('rows',), ('heads', 'rows')),
    ),
    ('rows', None, 'heads'),
  )
  out_BTHC = attend(
    *(queries(u_HC), queries(v_bias_HC)),
    *(_padded(x, K_pad, width) for x in (k_BKHC, v_BKHC)),
    jnp.einsum('wd,dhc->hwc', table_WD, w_r_DHC),
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  static: _Static,
  qu_BTHC: jax.Array,
  qv_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  words_HBT: jax.Array | None,
) -> jax.Array:
  """The attended values [B, T, H, C], all sizes padded."""
  operands = qu_BTHC, qv_BTHC, k_BLHC, v_BLHC, r_HWC
  return _forward(static, *operands, first_BT, words_HBT)[0]


def _forward(
  static: _Static,
  qu_BTHC: jax.Array,
  qv_BTHC: jax.Array,
  k_BLHC: jax.Array,
  v_BLHC: jax.Array,
  r_HWC: jax.Array,
  first_BT: jax.Array,
  words_HBT: jax.Array | None,
) -> tuple[jax.Array, tuple]:
  operands = qu_BTHC, qv_BTHC, k_BLHC, v_BLHC, r_HWC, first_BT
  places_2 = np.array([static.end, _start(qu_BTHC)], np.int32)
  tiles = _tiles(static, first_BT, k_BLHC)
  out_SBTHC, lse_SHBT = _once_a_layer(forward, rate=static.rate)(
    *operands, tiles, jnp.asarray(places_2), words_HBT
  )
  return out_SBTHC[0], (*operands, words_HBT, out_SBTHC[0], lse_SHBT[0])


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


def _backward(
  static: _Static, saved: tuple, gradient_BTHC: jax.Array
) -> tuple[Any, ...]:
  qu_BTHC, qv_BTHC, k_BLHC, v_BLHC, r_HWC, first_BT = saved[:6]
  words_HBT, out_BTHC, lse_HBT = saved[6:]
  wide = (x.astype(jnp.float32) for x in (gradient_BTHC, out_BTHC))
  mean_BTH = jnp.multiply(*wide).sum(-1)
  tiles_BIS2 = _tiles(static, first_BT, k_BLHC)
  places = dict(end=static.end, start=_start(qu_BTHC))
  run = _once_a_layer(score_gradients, rate=static.rate, **places)
  found = run(
    *(qu_BTHC, qv_BTHC, gradient_BTHC, k_BLHC, v_BLHC, r_HWC, first_BT),
    *(lse_HBT, mean_BTH.transpose(2, 0, 1), tiles_BIS2, words_HBT),
  )
  of_keys = _once_a_layer(sum_over_queries)
  dqv_BTHC = jnp.einsum('hbtw,hwc->bthc', found.draw_HBTW, r_HWC)
  # Together, so that no array of the scores' size waits for a sum over layers.
  dqu_BTHC, dk_BLHC, dv_BLHC, dr_HWC = jax.lax.optimization_barrier(
    (
      found.dqu_BTHC,
      of_keys(found.dscore_BHTL, qu_BTHC, tiles_BIS2),
      of_keys(found.weight_BHTL, gradient_BTHC, tiles_BIS2),
      jnp.einsum('hbtw,bthc->hwc', found.draw_HBTW, qv_BTHC),
    )
  )
  return dqu_BTHC, dqv_BTHC, dk_BLHC, dv_BLHC, dr_HWC, None, None


_attend.defvjp(_forward, _backward)
