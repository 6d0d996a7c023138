"""The stack of layers and the language model."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model import ablations
from txl_jax.model import memory as memory_lib
from txl_jax.model.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from txl_jax.model.layer import Layer, drop
from txl_jax.model.loop import scan_layers
from txl_jax.model.memory import AnyMemory
from txl_jax.model.positions import drop_positions
from txl_jax.model.widths import pad_layer, pads, widths
from txl_jax.ops.alignment import pad_last
from txl_jax.ops.relative_attention import takes_sinusoids
from txl_jax.ops.sinusoids import Sinusoids, sinusoid_table


class TransformerXL(nn.Module):
  """Transformer-XL (Dai et al. 2019): memory goes in and comes out.

  The layers' parameters are stacked [N, ...].
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
    hidden_BTD, remembered = self._layers(
      drop(self, hidden_BTD, train),
      memory.layers,
      self._positions(sum(sizes.values()), train),
      self._shared_biases(),
      first_BT,
      train=train,
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
    return self.softmax(hidden_BTD, targets_BT, self.embedding.vectors())

  def log_probs(self, hidden_BTD: jax.Array) -> jax.Array:
    """Log-probabilities of the next token [B, T, V] from hidden states."""
    return self.softmax.log_probs(hidden_BTD, self.embedding.vectors())

  def sample(
    self, hidden_BD: jax.Array, keys_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """A next token for each row [B], drawn, and its log-probability [B]."""
    return self.softmax.sample(hidden_BD, keys_B, self.embedding.vectors())

  def _layers(
    self,
    hidden_BTD: jax.Array,
    memory: Any,
    positions: jax.Array | Sinusoids | None,
    shared_biases: tuple[jax.Array, jax.Array] | None,
    first_BT: jax.Array,
    *,
    train: bool,
  ) -> tuple[jax.Array, Any]:
    """The output of the last layer, and what each remembers, stacked."""
    config = self.config
    shared = (positions, shared_biases, first_BT)
    params = self._layer_params(hidden_BTD, memory, *shared)
    keys_N = None
    if train and self.has_rng('dropout'):
      keys_N = jax.random.split(self.make_rng('dropout'), config.n_layers)
    # Keys and values that are remembered keep their width.
    padded = pads(config) and not isinstance(memory, tuple)
    if padded:
      D, C, _ = widths(config, padded)
      hidden_BTD, memory, shared_biases = (
        jax.tree.map(functools.partial(pad_last, width=width), tree)
        for tree, width in (
          (hidden_BTD, D),
          (memory, D),
          (shared_biases, C),
        )
      )
      if isinstance(positions, jax.Array):
        positions = pad_last(positions, D)
      # All layers at once.
      params = jax.vmap(functools.partial(pad_layer, config))(params)
    layer = Layer(config, train, padded, parent=None)

    def step(hidden_BTD: jax.Array, own: tuple) -> tuple[jax.Array, Any]:
      params, memory, key = own
      return layer.apply(
        {'params': params},
        *(hidden_BTD, memory, positions, shared_biases, first_BT),
        rngs={} if key is None else {'dropout': key},
      )

    hidden_BTD, remembered = scan_layers(
      step,
      hidden_BTD,
      (params, memory, keys_N),
      config.n_layers,
      unroll=config.unroll,
      remat=config.remat,
    )
    if padded:
      remembered = remembered[..., : config.d_model]
    return hidden_BTD[..., : config.d_model], remembered

  def _layer_params(
    self, hidden_BTD: jax.Array, memory: Any, *shared: Any
  ) -> dict:
    """The layers' parameters, stacked; drawn at initialisation."""
    if not self.is_initializing():
      return self.get_variable('params', 'layers')
    layer = Layer(self.config, train=False, parent=None)

    def init(key: jax.Array) -> dict:
      first = jax.tree.map(lambda leaf: leaf[0], memory)
      return layer.init(key, hidden_BTD, first, *shared)['params']

    def stacked(key: jax.Array) -> dict:
      return jax.vmap(init)(jax.random.split(key, self.config.n_layers))

    return self.param('layers', stacked)

  def _shared_biases(self) -> tuple[jax.Array, jax.Array] | None:
    config = self.config
    if config.untie_biases or config.position_encoding != 'relative':
      return None
    init = nn.initializers.normal(config.init_std)
    shape = (config.n_heads, config.d_head)
    u_HC = self.param('content_bias', init, shape)
    v_HC = self.param('position_bias', init, shape)
    return u_HC.astype(config.dtype), v_HC.astype(config.dtype)

  def _positions(
    self, n_keys: int, train: bool
  ) -> jax.Array | Sinusoids | None:
    """The table R after dropout: one mask a forward for all layers and rows."""
    config = self.config
    if config.position_encoding != 'relative':
      return None
    wide = jnp.promote_types(config.dtype, jnp.float32)
    dropping = train and config.dropout > 0
    by_feature = config.position_dropout == 'feature'
    whole = config.clamp_length is None and (by_feature or not dropping)
    by_columns = whole and takes_sinusoids(config.attention_implementation)
    if by_columns:
      table_KD = jnp.ones((1, config.d_model), wide)
    else:
      table_KD = sinusoid_table(
        n_keys, config.d_model, config.clamp_length, wide
      )
    if dropping:
      table_KD = drop_positions(
        table_KD,
        self.make_rng('dropout'),
        rate=config.dropout,
        whole_features=by_feature,
      )
    return (
      Sinusoids(table_KD[0]) if by_columns else table_KD.astype(config.dtype)
    )


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
