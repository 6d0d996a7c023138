"""Relative attention with memory: the operator (Dai et al. 2019, section 3.3).

For query i and key j at distance d = M + i - j the score has four terms,

  A_ij = q_i . k_j + q_i . r_d + u . k_j + v . r_d,     r_d = W_R R_d,

computed as (q_i + u) . k_j + (q_i + v) . r_d. A query sees the keys from its
`first` to itself.
"""

from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.errors import InputError
from txl_jax.ops import hopper, reference_attention, xla_attention
from txl_jax.ops.alignment import aligned, pad_last
from txl_jax.ops.hopper import KERNEL_TILE, KERNEL_WIDTHS
from txl_jax.ops.sinusoids import Sinusoids
from txl_jax.ops.tpu import on_tpu


def _mosaic_gpu(*operands: jax.Array, **options: Any) -> jax.Array:
  hopper.check_hopper()
  # Half a second to import, for GPUs alone.
  from txl_jax.ops import mosaic_relative_attention

  return mosaic_relative_attention.relative_attention(*operands, **options)


IMPLEMENTATIONS = {
  'reference': reference_attention.relative_attention,
  'xla': xla_attention.relative_attention,
  'mosaic_gpu': _mosaic_gpu,
}


def takes_sinusoids(implementation: str) -> bool:
  """Whether this one wants the table by its columns, where it may be that."""
  return implementation == 'splash' or (implementation == 'auto' and on_tpu())


def takes_kernel(implementation: str, dtype: Any, C: int) -> bool:
  """Whether training attends by the kernels for Hopper here.

  Args:
    implementation: as for `relative_attention`.
    dtype: of queries, keys and values.
    C: width of a head.
  """
  fits = jnp.dtype(dtype) == jnp.bfloat16 and C <= KERNEL_WIDTHS[-1]
  return implementation == 'mosaic_gpu' or (
    implementation == 'auto' and fits and hopper.on_hopper()
  )


def head_width(implementation: str, dtype: Any, C: int) -> int:
  """The width to pad heads to, with zeros, so that attending copies nothing."""
  if takes_kernel(implementation, dtype, C):
    return next((width for width in KERNEL_WIDTHS if C <= width), C)
  return aligned(C)


def key_places(implementation: str, dtype: Any, C: int, K: int) -> int:
  """Likewise, for how many keys to make room."""
  by_kernel = takes_kernel(implementation, dtype, C)
  return -(-K // KERNEL_TILE) * KERNEL_TILE if by_kernel else K


def relative_attention(
  q_BTHC: jax.Array,
  k_BKHC: jax.Array,
  v_BKHC: jax.Array,
  table: jax.Array | Sinusoids,
  w_r_DHC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  *,
  scale: float | None = None,
  dropout_rate: float = 0.0,
  dropout_seed: jax.Array | None = None,
  span: int | None = None,
  implementation: str = 'auto',
) -> jax.Array:
  """Attends from T queries to K = M + T keys, memory first.

  Args:
    q_BTHC: queries.
    k_BKHC: keys. There may be more than the table has rows: nobody sees them.
    v_BKHC: values.
    table: position table R [K, D], one row per key, distances K - 1 to 0;
      whatever clamping and dropout do to it is done. Or what its columns are
      multiplied by; those of W_R beyond it count as 0.
    w_r_DHC: the projection W_R of the table.
    u_HC: content bias u.
    v_bias_HC: position bias v.
    first_BT: int, the first key that each query sees.
    scale: of the scores; None = 1 / sqrt(C).
    dropout_rate: share of attention probabilities that are dropped.
    dropout_seed: uint32, needed if the rate is above 0; the mask is the
      `weight_mask` of [B, H, T, K] in every implementation.
    span: keys that a query sees at most, where `first_BT` has it so; None = no
      limit.
    implementation: 'reference' (plain), 'xla' (the same with less memory
      traffic), 'mosaic_gpu' (kernels for NVIDIA's Hopper, which write no scores
      to memory in the forward pass; bfloat16, C at most 128), 'splash' (a
      kernel for TPUs; needs the table by its columns, and no dropout) or
      'auto': 'splash' on a TPU and 'mosaic_gpu' on Hopper where that can be,
      else 'xla'.

  Returns:
    The attended values [B, T, H, C], in the dtype of the values; 0 for a query
    that sees no key.

  Raises:
    InputError: for an unknown implementation, or one that cannot do this here.
  """
  _check_known(implementation)
  operands = q_BTHC, k_BKHC, v_BKHC, table, w_r_DHC, u_HC, v_bias_HC, first_BT
  scale = q_BTHC.shape[-1] ** -0.5 if scale is None else scale
  if takes_sinusoids(implementation) and not dropout_rate:
    if isinstance(table, Sinusoids):
      return _splash(*operands, scale=scale, span=span)
  dropout = dict(dropout_rate=dropout_rate, dropout_seed=dropout_seed)
  return _by_table(implementation, *operands, scale=scale, **dropout)


def _check_known(implementation: str) -> None:
  known = ('auto', *IMPLEMENTATIONS, 'splash')
  if implementation not in known:
    choices = ', '.join(map(repr, known))
    raise InputError(
      f'implementation must be one of {choices}, found {implementation!r}'
    )


def _splash(*operands: Any, **options: Any) -> jax.Array:
  # A second to import, for TPUs alone.
  from txl_jax.ops import splash_attention

  return splash_attention.relative_attention(*operands, **options)


def _by_table(
  implementation: str,
  q_BTHC: jax.Array,
  k_BKHC: jax.Array,
  v_BKHC: jax.Array,
  table: jax.Array | Sinusoids,
  w_r_DHC: jax.Array,
  *others: jax.Array,
  **options: Any,
) -> jax.Array:
  """By an implementation that is given the table itself."""
  if implementation == 'splash':
    raise InputError(
      "attention_implementation 'splash' needs a table of whole sinusoids and "
      'no attention dropout: clamp_length None, attention_dropout 0, and '
      "position_dropout 'feature' or dropout 0"
    )
  if isinstance(table, Sinusoids):
    plain_KD = table.table(k_BKHC.shape[1], q_BTHC.dtype)
    table = pad_last(plain_KD, len(w_r_DHC))
  if takes_kernel(implementation, q_BTHC.dtype, q_BTHC.shape[-1]):
    implementation = 'mosaic_gpu'
  else:
    # The kernels alone have a use for places that nobody sees.
    k_BKHC, v_BKHC = (x[:, : len(table)] for x in (k_BKHC, v_BKHC))
  attend = {'auto': IMPLEMENTATIONS['xla'], **IMPLEMENTATIONS}[implementation]
  return attend(q_BTHC, k_BKHC, v_BKHC, table, w_r_DHC, *others, **options)
