"""The layer: attention and feed-forward."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model import ablations
from txl_jax.model.attention import KeysAndValues
from txl_jax.model.widths import widths
from txl_jax.ops.add_and_norm import add_and_norm
from txl_jax.ops.cached_attention import Slots
from txl_jax.ops.dropout import dropout, seed_of
from txl_jax.ops.feed_forward import feed_forward
from txl_jax.ops.layer_norm import layer_norm
from txl_jax.ops.sinusoids import Sinusoids


class LayerNorm(nn.Module):
  """Layer norm over the last axis, statistics in float32 or wider."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [..., D], which may be padded."""
    config = self.config
    return layer_norm(
      x, *self._weights(x), config.layer_norm_epsilon, config.d_model
    )

  def _weights(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gain and shift [D]."""
    shape = x.shape[-1:]
    scale_D = self.param('scale', self._init_scale, shape)
    return scale_D, self.param('bias', nn.initializers.zeros, shape)

  def _init_scale(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 1 + self.config.init_std * jax.random.normal(key, shape)


class AddAndNorm(LayerNorm):
  """The end of a sublayer: dropout, residual connection and layer norm."""

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    branch_BTD: jax.Array,
    bias_D: jax.Array | None,
    dropped: tuple[jax.Array, float],
    n_uses: int = 1,
  ) -> tuple[jax.Array, ...]:
    """What `ops/add_and_norm.py` computes, once for each use."""
    config = self.config
    return add_and_norm(
      *(x_BTD, branch_BTD, bias_D, *self._weights(x_BTD), *dropped),
      epsilon=config.layer_norm_epsilon,
      n_features=config.d_model,
      n_uses=n_uses,
      implementation=config.attention_implementation,
    )


def next_dropout(module: nn.Module, train: bool) -> tuple[jax.Array, float]:
  """Seed and rate for a module that has a config; rate 0 = no dropout."""
  rate = module.config.dropout
  if not train or rate == 0:
    return jnp.uint32(0), 0.0
  return seed_of(module.make_rng('dropout')), rate


def drop(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
  """Dropout in training, by the next key of a module that has a config."""
  return dropout(x, *next_dropout(module, train))


class FeedForward(nn.Module):
  """The position-wise feed-forward network."""

  config: ModelConfig
  train: bool
  padded: bool = False

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W2 dropout(relu(W1 x + b1)), and b2, which is still to be added."""
    config = self.config
    D, _, F = widths(config, self.padded)
    matrix, zeros = (
      nn.initializers.normal(config.init_std),
      nn.initializers.zeros,
    )

    def weight(name: str, init: Callable, *shape: int) -> jax.Array:
      return self.param(name, init, shape).astype(config.dtype)

    outer_BTD = feed_forward(
      x_BTD,
      weight('inner_kernel', matrix, D, F),
      weight('inner_bias', zeros, F),
      weight('outer_kernel', matrix, F, D),
      *next_dropout(self, self.train),
      implementation=config.attention_implementation,
    )
    return outer_BTD, weight('outer_bias', zeros, D)


class Layer(nn.Module):
  """Attention and feed-forward, each with dropout, residual and layer norm.

  Attributes:
    config: of the model.
    train: whether to drop out.
    padded: whether parameters and arguments have padded widths, and the output
      is to have them.
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
  ) -> tuple[jax.Array, jax.Array | KeysAndValues | Slots]:
    """One layer over a segment.

    Args:
      hidden_BTD: the layer's input.
      memory: its earlier inputs [B, M, D], or their keys and values.
      positions: the position table, if the encoding has one.
      shared_biases: u and v [H, C] if all layers share them.
      first_BT: the first key that each query sees.

    Returns:
      The layer's output [B, T, D], and what is to be remembered of the segment:
      its input, its keys and values, or the slots that they were written to.
    """
    config = self.config
    attention = ablations.attention_class(config)(
      config, self.train, self.padded, name='attention'
    )
    norm = LayerNorm if config.pre_norm else AddAndNorm
    attention_norm = norm(config, name='attention_norm')
    feed_forward = FeedForward(
      config, self.train, self.padded, name='feed_forward'
    )
    feed_forward_norm = norm(config, name='feed_forward_norm')
    projected = isinstance(memory, tuple)

    if config.position_encoding == 'learned':
      add_positions = ablations.LearnedPositions(config, name='positions')
      hidden_BTD = add_positions(hidden_BTD)
    before = attention_norm if config.pre_norm else lambda x: x
    attended_BTD, remembered, passed_BTD = attention(
      before(hidden_BTD),
      memory if projected else before(memory),
      positions,
      shared_biases,
      first_BT,
    )
    if not projected:
      remembered = hidden_BTD
    if config.pre_norm:
      hidden_BTD = hidden_BTD + drop(self, attended_BTD, self.train)
      outer_BTD, bias_D = feed_forward(feed_forward_norm(hidden_BTD))
      outer_BTD = drop(self, outer_BTD + bias_D, self.train)
      return hidden_BTD + outer_BTD, remembered
    hidden_BTD, again_BTD = attention_norm(
      *(passed_BTD, attended_BTD, None, next_dropout(self, self.train)),
      n_uses=2,
    )
    outer_BTD, bias_D = feed_forward(again_BTD)
    (hidden_BTD,) = feed_forward_norm(
      hidden_BTD, outer_BTD, bias_D, next_dropout(self, self.train)
    )
    return hidden_BTD, remembered
