"""Relative multi-head attention: projections, biases, dropout, memory."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model.widths import widths
from txl_jax.ops.cached_attention import Slots, cached_attention
from txl_jax.ops.dropout import seed_of
from txl_jax.ops.products import join_heads, project
from txl_jax.ops.projections import projections
from txl_jax.ops.relative_attention import key_places, relative_attention
from txl_jax.ops.sinusoids import Sinusoids

KeysAndValues = tuple[jax.Array, jax.Array]


class Attention(nn.Module):
  """An attention sublayer, before residual and layer norm.

  The memory comes as hidden states, in the same (normalised) form as the
  segment, or as keys and values. What the encodings of position differ in is
  `attend`.

  Attributes:
    config: of the model.
    train: whether to drop out.
    padded: whether all that comes in is padded, and what goes out is to be.
  """

  config: ModelConfig
  train: bool
  padded: bool = False

  @nn.compact
  def __call__(
    self,
    hidden_BTD: jax.Array,
    memory: jax.Array | KeysAndValues | Slots,
    positions: jax.Array | Sinusoids | None,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
  ) -> tuple[jax.Array, KeysAndValues | Slots | tuple[()], jax.Array]:
    """Attends to memory and segment.

    Args:
      hidden_BTD: the (normalised, if pre-norm) input of the layer.
      memory: [B, M, D], or keys and values [B, M, H, C] each, or slots.
      positions: the position table R, or by what its columns are multiplied;
        None where the encoding has none, or where the slots have it.
      shared_biases: u and v [H, C]; None where each layer has its own.
      first_BT: the first key that each query sees.

    Returns:
      The output [B, T, D]; the keys and values of the T positions, or the slots
      with them, or () if the memory has hidden states; and the input as it
      is: with what else uses it, all its gradients may be added up together.
    """
    config = self.config
    D, C, _ = widths(config, self.padded)
    H = config.n_heads
    w_k, w_v = self.kernel('key', D, H, C), self.kernel('value', D, H, C)
    w_q, w_o = self.kernel('query', D, H, C), self.kernel('output', H, C, D)
    new = ()
    if isinstance(memory, tuple):
      q_BTHC, *new = (project(hidden_BTD, w) for w in (w_q, w_k, w_v))
    if isinstance(memory, Slots):
      slots = memory.write(*new)
      out_BTHC = cached_attention(
        *(q_BTHC, slots, *self.biases(shared_biases), first_BT),
        config.attention_implementation,
      )
      return join_heads(out_BTHC, w_o), slots, hidden_BTD
    if isinstance(memory, tuple):
      k_BKHC, v_BKHC = (
        jnp.concatenate(both, axis=1) for both in zip(memory, new)
      )
    else:
      q_BTHC, k_BKHC, v_BKHC, hidden_BTD = projections(
        *(memory, hidden_BTD, (w_q, w_k, w_v)),
        self.key_places(memory.shape[1] + hidden_BTD.shape[1]),
        implementation=config.attention_implementation,
      )
    rate = config.attention_dropout if self.train else 0.0
    out_BTHC = self.attend(
      q_BTHC,
      k_BKHC,
      v_BKHC,
      positions,
      shared_biases,
      first_BT,
      dropout_rate=rate,
      dropout_seed=seed_of(self.make_rng('dropout')) if rate else None,
    )
    return join_heads(out_BTHC, w_o), tuple(new), hidden_BTD

  def key_places(self, n_keys: int) -> int:
    """For how many keys there is to be room; nobody sees the rest."""
    return n_keys

  def kernel(self, name: str, *shape: int) -> jax.Array:
    """A weight of this shape, from N(0, init_std)."""
    init = nn.initializers.normal(self.config.init_std)
    return self.param(name, init, shape).astype(self.config.dtype)

  def biases(
    self, shared: tuple[jax.Array, jax.Array] | None
  ) -> tuple[jax.Array, jax.Array]:
    """The biases u and v [H, C]: those that layers share, or the layer's."""
    shape = (self.config.n_heads, widths(self.config, self.padded).d_head)
    return shared or (
      self.kernel('content_bias', *shape),
      self.kernel('position_bias', *shape),
    )

  def attend(
    self,
    q_BTHC: jax.Array,
    k_BKHC: jax.Array,
    v_BKHC: jax.Array,
    positions: jax.Array | Sinusoids | None,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
    **dropout: Any,
  ) -> jax.Array:
    """The attended values [B, T, H, C], each head for itself."""
    raise NotImplementedError


class RelativeAttention(Attention):
  """The paper's own: sinusoids of relative distance, biases u and v."""

  def key_places(self, n_keys: int) -> int:
    """As many as attending likes."""
    config = self.config
    kind = config.attention_implementation, config.dtype, config.d_head
    return key_places(*kind, n_keys)

  def attend(
    self,
    q_BTHC: jax.Array,
    k_BKHC: jax.Array,
    v_BKHC: jax.Array,
    positions: jax.Array | Sinusoids | None,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
    **dropout: Any,
  ) -> jax.Array:
    """Four terms a score (section 3.3)."""
    config = self.config
    D, C, _ = widths(config, self.padded)
    u_HC, v_bias_HC = self.biases(shared_biases)
    w_r_DHC = self.kernel('relative', D, config.n_heads, C)
    return relative_attention(
      *(q_BTHC, k_BKHC, v_BKHC, positions, w_r_DHC, u_HC, v_bias_HC, first_BT),
      scale=config.d_head**-0.5,
      span=config.attention_span,
      implementation=config.attention_implementation,
      **dropout,
    )
