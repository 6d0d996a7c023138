"""Relative multi-head attention: projections, biases, dropout, memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.ops.relative_attention import relative_attention

KeysAndValues = tuple[jax.Array, jax.Array]


class RelativeAttention(nn.Module):
  """The attention sublayer, before residual and layer norm.

  The memory comes as hidden states, in the same (normalised) form as the
  segment, or as keys and values.
  """

  config: ModelConfig
  train: bool

  @nn.compact
  def __call__(
    self,
    hidden_BTD: jax.Array,
    memory: jax.Array | KeysAndValues,
    table_KD: jax.Array,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
  ) -> tuple[jax.Array, KeysAndValues]:
    """Attends to memory and segment.

    Args:
      hidden_BTD: the (normalised, if pre-norm) input of the layer.
      memory: [B, M, D], or keys and values [B, M, H, C] each.
      table_KD: the position table R.
      shared_biases: u and v [H, C]; None where each layer has its own.
      first_BT: the first key that each query sees.

    Returns:
      The output [B, T, D], and the keys and values of the T positions.
    """
    config = self.config
    D, H, C = config.d_model, config.n_heads, config.d_head

    def kernel(name: str, *shape: int) -> jax.Array:
      init = nn.initializers.normal(config.init_std)
      return self.param(name, init, shape).astype(config.dtype)

    w_k, w_v = kernel('key', D, H, C), kernel('value', D, H, C)
    u_HC, v_bias_HC = shared_biases or (
      kernel('content_bias', H, C),
      kernel('position_bias', H, C),
    )
    q_BTHC = jnp.einsum('btd,dhc->bthc', hidden_BTD, kernel('query', D, H, C))
    new = (project(hidden_BTD, w_k), project(hidden_BTD, w_v))
    if not isinstance(memory, tuple):
      memory = (project(memory, w_k), project(memory, w_v))
    k_BKHC, v_BKHC = (
      jnp.concatenate(both, axis=1) for both in zip(memory, new)
    )
    rate = config.attention_dropout if self.train else 0.0
    out_BTHC = relative_attention(
      q_BTHC,
      k_BKHC,
      v_BKHC,
      table_KD,
      kernel('relative', D, H, C),
      u_HC,
      v_bias_HC,
      first_BT,
      dropout_rate=rate,
      dropout_key=self.make_rng('dropout') if rate else None,
    )
    out_BTD = jnp.einsum('bthc,hcd->btd', out_BTHC, kernel('output', H, C, D))
    return out_BTD, new


def project(hidden_BKD: jax.Array, w_DHC: jax.Array) -> jax.Array:
  """Hidden states to heads [B, K, H, C]."""
  return jnp.einsum('bkd,dhc->bkhc', hidden_BKD, w_DHC)
