"""The layer, the stack and the language model."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model import ablations
from txl_jax.model import memory as memory_lib
from txl_jax.model.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from txl_jax.model.attention import KeysAndValues
from txl_jax.model.memory import AnyMemory
from txl_jax.model.positions import drop_positions, sinusoid_table
from txl_jax.ops.cached_attention import Slots
from txl_jax.ops.dropout import dropout, seed_of


class LayerNorm(nn.Module):
  """Layer norm over the last axis, statistics in float32 or wider."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [..., D]."""
    shape = x.shape[-1:]
    scale_D = self.param('scale', self._init_scale, shape)
    bias_D = self.param('bias', nn.initializers.zeros, shape)
    return layer_norm(x, scale_D, bias_D, self.config.layer_norm_epsilon)

  def _init_scale(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 1 + self.config.init_std * jax.random.normal(key, shape)


def layer_norm(
  x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, in the dtype of x."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred = wide - wide.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  normed = centred * jax.lax.rsqrt(variance + epsilon)
  return (normed * scale_D + bias_D).astype(x.dtype)


def drop(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
  """Dropout in training, by the next key of a module that has a config."""
  rate = module.config.dropout
  if not train or rate == 0:
    return x
  return dropout(x, seed_of(module.make_rng('dropout')), rate)


class FeedForward(nn.Module):
  """The position-wise feed-forward sublayer, before residual and norm."""

  config: ModelConfig
  train: bool

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """W2 dropout(relu(W1 x + b1)) + b2."""
    config = self.config
    D, F = config.d_model, config.d_ff
    matrix, zeros = (
      nn.initializers.normal(config.init_std),
      nn.initializers.zeros,
    )

    def weight(name: str, init: Callable, *shape: int) -> jax.Array:
      return self.param(name, init, shape).astype(config.dtype)

    inner_BTF = jnp.einsum(
      'btd,df->btf', x_BTD, weight('inner_kernel', matrix, D, F)
    )
    inner_BTF = nn.relu(inner_BTF + weight('inner_bias', zeros, F))
    inner_BTF = drop(self, inner_BTF, self.train)
    outer_BTD = jnp.einsum(
      'btf,fd->btd', inner_BTF, weight('outer_kernel', matrix, F, D)
    )
    return outer_BTD + weight('outer_bias', zeros, D)


class Layer(nn.Module):
  """Attention and feed-forward, each with dropout, residual and layer norm."""

  config: ModelConfig
  train: bool

  @nn.compact
  def __call__(
    self,
    hidden_BTD: jax.Array,
    memory: jax.Array | KeysAndValues | Slots,
    table_KD: jax.Array | None,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
  ) -> tuple[jax.Array, jax.Array | KeysAndValues | Slots]:
    """One layer over a segment.

    Args:
      hidden_BTD: the layer's input.
      memory: its earlier inputs [B, M, D], or their keys and values.
      table_KD: the position table, if the encoding has one.
      shared_biases: u and v [H, C] if all layers share them.
      first_BT: the first key that each query sees.

    Returns:
      The layer's output [B, T, D], and what is to be remembered of the segment:
      its input, its keys and values, or the slots that they were written to.
    """
    config = self.config
    attention = ablations.attention_class(config)(
      config, self.train, name='attention'
    )
    attention_norm = LayerNorm(config, name='attention_norm')
    feed_forward = FeedForward(config, self.train, name='feed_forward')
    feed_forward_norm = LayerNorm(config, name='feed_forward_norm')
    projected = isinstance(memory, tuple)

    if config.position_encoding == 'learned':
      add_positions = ablations.LearnedPositions(config, name='positions')
      hidden_BTD = add_positions(hidden_BTD)
    before = attention_norm if config.pre_norm else lambda x: x
    attended_BTD, remembered = attention(
      before(hidden_BTD),
      memory if projected else before(memory),
      table_KD,
      shared_biases,
      first_BT,
    )
    if not projected:
      remembered = hidden_BTD
    hidden_BTD = hidden_BTD + drop(self, attended_BTD, self.train)
    if config.pre_norm:
      outer_BTD = feed_forward(feed_forward_norm(hidden_BTD))
      return hidden_BTD + drop(self, outer_BTD, self.train), remembered
    hidden_BTD = attention_norm(hidden_BTD)
    outer_BTD = drop(self, feed_forward(hidden_BTD), self.train)
    return feed_forward_norm(hidden_BTD + outer_BTD), remembered


class TransformerXL(nn.Module):
  """Transformer-XL (Dai et al. 2019): memory goes in and comes out.

  The layers' parameters are stacked [N, ...] and scanned over.
  """

  config: ModelConfig

  def setup(self):
    self.embedding = AdaptiveEmbedding(self.config)
    self.softmax = AdaptiveSoftmax(self.config)

  @nn.compact
  def __call__(
    self,
    tokens_BT: jax.Array,
    memory: AnyMemory,
    starts_BT: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, AnyMemory]:
    """Reads a segment.

    Args:
      tokens_BT: token ids; ids outside the vocabulary make the output NaN.
      memory: of the text before; either kind.
      starts_BT: True where a token begins a document: nothing before is seen.
      train: whether to drop out; needs `rngs={'dropout': key}`.

    Returns:
      The hidden states [B, T, D] and the memory after the segment, of the
      same kind.

    Raises:
      InputError: for a memory of other rows than the tokens, or too short for
        the attention span, and for `starts_BT` with attended zeros.
    """
    config = self.config
    check_memory(config, tokens_BT, memory, starts_BT)
    sizes = dict(memory_length=memory.length, segment_length=tokens_BT.shape[1])
    first_BT = memory_lib.visibility(
      memory.valid_B,
      starts_BT,
      attention_span=config.attention_span,
      **sizes,
    )
    hidden_BTD = self.embedding(tokens_BT)
    if config.position_encoding == 'sinusoid':
      T = tokens_BT.shape[1]
      hidden_BTD = hidden_BTD + ablations.absolute_sinusoids(config, T)
    hidden_BTD, remembered = self._stack(train)(
      drop(self, hidden_BTD, train),
      memory.layers,
      self._positions(sum(sizes.values()), train),
      self._shared_biases(),
      first_BT,
    )
    valid_B = memory_lib.valid_after(memory.valid_B, starts_BT, **sizes)
    return drop(self, hidden_BTD, train), memory.push(remembered, valid_B)

  def score(
    self,
    tokens_BT: jax.Array,
    targets_BT: jax.Array,
    memory: AnyMemory,
    starts_BT: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, AnyMemory]:
    """Negative log-likelihood of the targets [B, T], and the new memory."""
    hidden_BTD, memory = self(tokens_BT, memory, starts_BT, train)
    return self.losses(hidden_BTD, targets_BT), memory

  def embed(self, tokens_BT: jax.Array) -> jax.Array:
    """The input of the first layer [B, T, D], without absolute positions."""
    return self.embedding(tokens_BT)

  def losses(self, hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of the targets [B, T] from hidden states."""
    return self.softmax(hidden_BTD, targets_BT, self.embedding.clusters())

  def log_probs(self, hidden_BTD: jax.Array) -> jax.Array:
    """Log-probabilities of the next token [B, T, V] from hidden states."""
    return self.softmax.log_probs(hidden_BTD, self.embedding.clusters())

  def sample(
    self, hidden_BD: jax.Array, keys_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """A next token for each row [B], drawn, and its log-probability [B]."""
    return self.softmax.sample(hidden_BD, keys_B, self.embedding.clusters())

  def _stack(self, train: bool) -> nn.Module:
    layer = nn.remat(Layer, prevent_cse=False) if self.config.remat else Layer
    stack = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=self.config.n_layers,
      unroll=self.config.unroll,
    )
    return stack(self.config, train, name='layers')

  def _shared_biases(self) -> tuple[jax.Array, jax.Array] | None:
    config = self.config
    if config.untie_biases or config.position_encoding != 'relative':
      return None
    init = nn.initializers.normal(config.init_std)
    shape = (config.n_heads, config.d_head)
    u_HC = self.param('content_bias', init, shape)
    v_HC = self.param('position_bias', init, shape)
    return u_HC.astype(config.dtype), v_HC.astype(config.dtype)

  def _positions(self, n_keys: int, train: bool) -> jax.Array | None:
    """The table R after dropout: one mask a forward for all layers and rows."""
    config = self.config
    if config.position_encoding != 'relative':
      return None
    wide = jnp.promote_types(config.dtype, jnp.float32)
    table_KD = sinusoid_table(n_keys, config.d_model, config.clamp_length, wide)
    if train and config.dropout > 0:
      table_KD = drop_positions(
        table_KD,
        self.make_rng('dropout'),
        rate=config.dropout,
        whole_features=config.position_dropout == 'feature',
      )
    return table_KD.astype(config.dtype)


def check_memory(
  config: ModelConfig,
  tokens_BT: jax.Array,
  memory: AnyMemory,
  starts_BT: jax.Array | None,
) -> None:
  """Raises an InputError where shapes and options cannot mean anything."""
  rows, span = tokens_BT.shape[0], config.attention_span
  if memory.valid_B.shape != (rows,):
    raise InputError(
      f'the memory has {memory.valid_B.shape[0]} rows, the tokens have {rows}'
    )
  if span is not None and memory.length < span - 1:
    raise InputError(
      f'attention_span {span} needs a memory of at least {span - 1} positions,'
      f' found {memory.length}'
    )
  if starts_BT is not None and config.memory_start == 'zeros':
    raise InputError(
      "starts_BT needs memory_start='empty': attended zeros have no documents"
    )
