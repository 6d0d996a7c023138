"""Relative attention on TPUs: features of position, and JAX's splash attention.

The position scores are those of ordinary attention with more features
(`fourier_features.py`), so a kernel of JAX's for ordinary attention computes
all scores, forward and backward, without writing them to memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from txl_jax.errors import InputError
from txl_jax.ops import fourier_features, shards
from txl_jax.ops.alignment import pad
from txl_jax.ops.sinusoids import Sinusoids
from txl_jax.ops.tpu import on_tpu

LANES = 128
_LARGEST = 512  # block
INTERPRET = False  # whether to interpret the kernel, for tests
_NOWHERE = -1  # the segment of keys that no query sees


class _Static(NamedTuple):
  """What the kernel is compiled for."""

  n_memory: int  # M, without padding
  span: int | None
  interpret: bool


def relative_attention(
  q_BTHC: jax.Array,
  k_BKHC: jax.Array,
  v_BKHC: jax.Array,
  positions: Sinusoids,
  w_r_DHC: jax.Array,
  u_HC: jax.Array,
  v_bias_HC: jax.Array,
  first_BT: jax.Array,
  *,
  scale: float,
  span: int | None,
) -> jax.Array:
  """The operator of `ops/relative_attention.py`.

  Beyond the span, a query's `first` may stand before it only at the first key
  of the memory that its row has filled, or where its document begins.
  """
  if not (on_tpu() or INTERPRET):
    raise InputError(
      "attention_implementation 'splash' needs a TPU, found platform "
      f'{jax.default_backend()!r}'
    )
  T, C, K = q_BTHC.shape[1], q_BTHC.shape[3], k_BKHC.shape[1]
  D, dtype = len(positions.factor_D), q_BTHC.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  w_r_DHC = w_r_DHC[:D].astype(wide) * positions.factor_D[:, None, None]

  def queries(bias_HC: jax.Array) -> jax.Array:
    return ((q_BTHC.astype(wide) + bias_HC.astype(wide)) * scale).astype(dtype)

  # As many as fill up whole lanes, so that nothing is left to be padded.
  n_features = len(fourier_features.basis(K, D).weight_FD)
  width = _whole(C + n_features)
  by_position = fourier_features.query_features(
    queries(v_bias_HC), w_r_DHC, K, width - C
  )
  key_KF = jnp.asarray(fourier_features.key_features(K, D, width - C), dtype)
  key_BKHF = jnp.broadcast_to(
    key_KF[:, None], (*k_BKHC.shape[:3], key_KF.shape[1])
  )
  T_pad, K_pad = _whole(T), _whole(K)
  query_BT, key_BK = _segments(first_BT, K)
  attend = shards.per_shard(
    functools.partial(_compiled, _Static(K - T, span, INTERPRET)),
    (*[('rows', 'heads')] * 3, *[('rows',)] * 2),
    ('rows', 'heads'),
    whole_mesh=True,
  )
  out_BHTC = attend(
    _heads_first([queries(u_HC), by_position], T_pad, width),
    _heads_first([k_BKHC, key_BKHF], K_pad, width),
    _heads_first([v_BKHC], K_pad, v_BKHC.shape[-1]),
    jnp.pad(query_BT, ((0, 0), (0, T_pad - T)), mode='edge'),
    jnp.pad(key_BK, ((0, 0), (0, K_pad - K)), constant_values=_NOWHERE),
  )
  return out_BHTC[:, :, :T].swapaxes(1, 2)


def _whole(length: int) -> int:
  return -(-length // LANES) * LANES


def _heads_first(parts: list[jax.Array], length: int, width: int) -> jax.Array:
  """Parts [B, X, H, C], side by side and padded with zeros: [B, H, X, C]."""
  joined_BHXC = jnp.concatenate(parts, axis=-1).swapaxes(1, 2)
  return pad(joined_BHXC, (*joined_BHXC.shape[:2], length, width))


def _segments(first_BT: jax.Array, K: int) -> tuple[jax.Array, jax.Array]:
  """Documents of queries [B, T] and keys [B, K]: each sees those of its own."""
  T = first_BT.shape[1]
  begins_BT = (first_BT == jnp.arange(K - T, K)).at[:, 0].set(False)
  query_BT = jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
  seen_BM = jnp.arange(K - T) >= first_BT[:, :1]
  memory_BM = jnp.where(seen_BM, 0, _NOWHERE).astype(jnp.int32)
  return query_BT, jnp.concatenate([memory_BM, query_BT], axis=1)


# Compiled for itself, so that it is lowered once for all layers.
@functools.partial(jax.jit, static_argnums=0)
def _compiled(
  static: _Static,
  q_BHTC: jax.Array,
  k_BHLC: jax.Array,
  v_BHLC: jax.Array,
  query_BT: jax.Array,
  key_BL: jax.Array,
) -> jax.Array:
  """The attended values [B, H, T, C], all sizes padded."""
  _, H, T, _ = q_BHTC.shape
  L = k_BHLC.shape[2]
  if static.span is None:
    mask = splash.CausalMask((T, L), offset=static.n_memory)
  else:
    window = (static.span - 1, 0)
    mask = splash.LocalMask((T, L), window, offset=static.n_memory)
  queries, keys = _block(T), _block(L)
  blocks = splash.BlockSizes(
    **dict(block_q=queries, block_kv=keys, block_kv_compute=keys),
    **dict(block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=keys),
    use_fused_bwd_kernel=True,
  )
  attend = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * H),
    block_sizes=blocks,
    head_shards=1,
    q_seq_shards=1,
    interpret=static.interpret,
  )
  segments = splash.SegmentIds(query_BT, key_BL)
  return jax.vmap(attend)(q_BHTC, k_BHLC, v_BHLC, segments)


def _block(length: int) -> int:
  """The largest block that divides a length."""
  sizes = range(LANES, min(length, _LARGEST) + 1, LANES)
  return max(size for size in sizes if length % size == 0)
