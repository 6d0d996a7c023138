"""Adaptive embedding and softmax (Grave et al. 2017, Baevski & Auli 2019).

Cutoffs split the vocabulary, ordered by frequency, into clusters. Cluster i has
embeddings of width E_i = E // div_val**i, projected to the model's width. The
softmax first chooses among the words of cluster 0 and the other clusters, then
a word of the chosen cluster. Without cutoffs there is one cluster, and both
are the ordinary embedding and softmax.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model.drawing import Weights, draw, log_softmax, project
from txl_jax.ops import shards
from txl_jax.ops.alignment import aligned, pad, pad_last
from txl_jax.ops.cross_entropy import cross_entropy, pad_vocabulary
from txl_jax.ops.tail_cross_entropy import (
  Tail,
  rows_at_once,
  tail_cross_entropy,
)


class Vectors(NamedTuple):
  """The vectors of all tokens.

  Attributes:
    tables: arrays [V, E], as `table_bounds` divides the vocabulary.
    projections: for each table [E, D], from its width to the model's; None =
      none.
  """

  tables: tuple[jax.Array, ...]
  projections: tuple[jax.Array | None, ...]


class _Stored(NamedTuple):
  """What a softmax computes with: parameters, as they are stored.

  Attributes:
    tables: as those of `Vectors`.
    projections: for each cluster, from its width to the model's; None = none.
    bias_V: of all words.
    cluster_weight: vectors of the clusters after the first; None = no others.
    cluster_bias: their biases.
  """

  tables: tuple[jax.Array, ...]
  projections: tuple[jax.Array | None, ...]
  bias_V: jax.Array
  cluster_weight: jax.Array | None = None
  cluster_bias: jax.Array | None = None


def cluster_bounds(config: ModelConfig) -> list[tuple[int, int]]:
  """First token id of each cluster, and the one after its last."""
  edges = (0, *config.cutoffs, config.vocab_size)
  return list(zip(edges, edges[1:]))


def table_bounds(config: ModelConfig) -> list[tuple[int, int]]:
  """The same for each stored table: clusters of one width share a table."""
  if config.div_val == 1:
    return [(0, config.vocab_size)]
  return cluster_bounds(config)


def cluster_width(config: ModelConfig, cluster: int) -> int:
  """Embedding width E_i of a cluster."""
  return config.embed_width // config.div_val**cluster


def has_projection(config: ModelConfig, cluster: int) -> bool:
  """Whether a matrix stands between the cluster's width and the model's."""
  if cluster_width(config, cluster) != config.d_model:
    return True
  return config.div_val > 1 and config.square_projections


class AdaptiveEmbedding(nn.Module):
  """Tokens to vectors of the model's width, scaled by sqrt(d_model)."""

  config: ModelConfig

  def setup(self):
    self.tables = _tables(self)
    self.projections = [
      _projection(self, i) if has_projection(self.config, i) else None
      for i in range(len(self.tables))
    ]

  def __call__(self, tokens_BT: jax.Array) -> jax.Array:
    """Embeds tokens [B, T]; ids outside the vocabulary become NaN."""
    config, tokens_BT = self.config, tokens_BT.astype(jnp.int32)
    shape = (*tokens_BT.shape, config.d_model)
    embedded_BTD = jnp.full(shape, jnp.nan, config.dtype)
    for (low, high), table_VE, projection_ED in zip(
      table_bounds(config), self.tables, self.projections
    ):
      inside_BT = (low <= tokens_BT) & (tokens_BT < high)
      # Others read beyond the table, so that no gradient is added for them.
      row_BT = jnp.where(inside_BT, tokens_BT - low, high - low)
      table_VE = shards.constrain(table_VE, 'vocabulary', None)
      vector_BTE = table_VE.at[row_BT].get(mode='fill', fill_value=0)
      vector_BTD = vector_BTE.astype(config.dtype)
      if projection_ED is not None:
        vector_BTD = vector_BTD @ projection_ED.astype(config.dtype)
      embedded_BTD = jnp.where(inside_BT[..., None], vector_BTD, embedded_BTD)
    return embedded_BTD * jnp.asarray(config.d_model**0.5, config.dtype)

  def vectors(self) -> Vectors:
    """What the softmax shares."""
    return Vectors(tuple(self.tables), tuple(self.projections))


class AdaptiveSoftmax(nn.Module):
  """Losses and log-probabilities of tokens, given hidden states.

  Head columns are the words of cluster 0, then clusters 1, 2, ... in order.
  """

  config: ModelConfig

  def setup(self):
    config = self.config
    n_clusters, zeros = len(config.cutoffs) + 1, nn.initializers.zeros
    self.bias = self.param('bias', zeros, (config.vocab_size,))
    if n_clusters > 1:
      shape = (n_clusters - 1, config.embed_width)
      normal = nn.initializers.normal(config.init_std)
      self.cluster_weight = self.param('cluster_weight', normal, shape)
      self.cluster_bias = self.param('cluster_bias', zeros, shape[:1])
    tied = config.tie_projections or (False,) * n_clusters
    self.projections = [
      _projection(self, i)
      if has_projection(config, i) and not tied[i]
      else None
      for i in range(n_clusters)
    ]
    if not config.tie_weights:
      self.tables = _tables(self)

  def __call__(
    self,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    embedding: Vectors,
  ) -> jax.Array:
    """Negative log-likelihood of the targets [B, T], natural log.

    Float32 or wider, in token order; NaN for ids outside the vocabulary.
    """
    # Parameters go in as they are stored: so are their gradients summed, and
    # XLA can add those of the embedding before.
    losses = shards.per_row_shard(
      functools.partial(_losses, self.config), (0, 0, None), 0
    )
    stored = self._stored(embedding)
    return losses(hidden_BTD, targets_BT.astype(jnp.int32), stored)

  def log_probs(self, hidden_BTD: jax.Array, embedding: Vectors) -> jax.Array:
    """Log-probabilities of the whole vocabulary [B, T, V]."""
    head_BTV, *tails = (
      log_softmax(hidden_BTD, *weights)
      for weights in _weights(self.config, self._stored(embedding))
    )
    (_, shortlist), *_ = cluster_bounds(self.config)
    parts = [head_BTV[..., :shortlist]]
    for i, tail_BTV in enumerate(tails):
      parts.append(head_BTV[..., shortlist + i, None] + tail_BTV)
    return jnp.concatenate(parts, axis=-1)

  def sample(
    self, hidden_BD: jax.Array, keys_B: jax.Array, embedding: Vectors
  ) -> tuple[jax.Array, jax.Array]:
    """Draws a token per row; returns it, int32, and its log-probability [B]."""
    lows = [low for low, _ in cluster_bounds(self.config)]
    weights = _weights(self.config, self._stored(embedding))
    return draw(hidden_BD, keys_B, weights, lows)

  def _stored(self, embedding: Vectors) -> _Stored:
    """The softmax's own weights, or the embedding's where they are tied."""
    config = self.config
    tables, shared = embedding
    if not config.tie_weights:
      tables = tuple(self.tables)
    if config.div_val == 1:
      shared *= len(self.projections)
    projections = tuple(
      theirs if own is None else own
      for own, theirs in zip(self.projections, shared)
    )
    stored = _Stored(tables, projections, self.bias)
    if not config.cutoffs:
      return stored
    return stored._replace(
      cluster_weight=self.cluster_weight, cluster_bias=self.cluster_bias
    )


def _weights(config: ModelConfig, stored: _Stored) -> list[Weights]:
  """Weights, biases and projection of the head, then of each tail."""
  bounds, tables, result = cluster_bounds(config), stored.tables, []
  if config.div_val == 1:
    tables = [tables[0][low:high] for low, high in bounds]
  for (low, high), table_VE, projection_ED in zip(
    bounds, tables, stored.projections
  ):
    parts, bias_V = (table_VE,), stored.bias_V[low:high]
    if low == 0 and config.cutoffs:
      parts = (table_VE, stored.cluster_weight)
      bias_V = jnp.concatenate([bias_V, stored.cluster_bias])
    result.append((parts, bias_V, projection_ED))
  return result


def _padded(weights: Weights) -> Tail:
  """With a vocabulary and widths that matrix units like."""
  parts, bias_V, projection_ED = weights
  weight_VE = jnp.concatenate(parts)
  E = aligned(weight_VE.shape[1])
  if projection_ED is not None:
    D = aligned(projection_ED.shape[1])
    projection_ED = pad(projection_ED, (E, D))
  return Tail(*pad_vocabulary(pad_last(weight_VE, E), bias_V), projection_ED)


def _tables(module: nn.Module) -> list[jax.Array]:
  config, normal = module.config, nn.initializers.normal(module.config.init_std)
  return [
    module.param(f'table_{i}', normal, (high - low, cluster_width(config, i)))
    for i, (low, high) in enumerate(table_bounds(config))
  ]


def _projection(module: nn.Module, cluster: int) -> jax.Array:
  config = module.config
  init = nn.initializers.normal(config.projection_init_std)
  shape = (cluster_width(config, cluster), config.d_model)
  return module.param(f'projection_{cluster}', init, shape)


def _losses(
  config: ModelConfig,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  stored: _Stored,
) -> jax.Array:
  """Losses [B, T] of the targets, NaN for unknown ones."""
  hidden_XD = hidden_BTD.reshape(-1, config.d_model)
  hidden_XD = pad_last(hidden_XD, aligned(config.d_model))
  known_BT = (0 <= targets_BT) & (targets_BT < config.vocab_size)
  targets_X = jnp.where(known_BT, targets_BT, 0).reshape(-1)
  head, *tails = map(_padded, _weights(config, stored))
  lows = jnp.array([0, *config.cutoffs], jnp.int32)
  cluster_X = (targets_X[:, None] >= lows[1:]).sum(-1, dtype=jnp.int32)
  local_X = targets_X - lows[cluster_X]
  column_X = targets_X
  if tails:
    column_X = jnp.where(
      cluster_X > 0, config.cutoffs[0] + cluster_X - 1, targets_X
    )
  nll_X = cross_entropy(
    project(hidden_XD, head.projection_ED),
    head.weight_VE,
    head.bias_V,
    column_X,
    implementation=config.attention_implementation,
  )
  if tails:
    rows = tuple(
      rows_at_once(len(targets_X), low, high, config.vocab_size)
      for low, high in cluster_bounds(config)[1:]
    )
    nll_X += tail_cross_entropy(
      *(rows, hidden_XD, tuple(tails), cluster_X, local_X),
      implementation=config.attention_implementation,
    )
  return jnp.where(known_BT, nll_X.reshape(known_BT.shape), jnp.nan)
