"""Floating-point operations that a token needs, counted from the formulas.

A multiplication with its addition counts as two. Only matrix products count:
those of the layers and of the softmax. What an implementation computes beyond
them (masked keys, words of other clusters, recomputation) is not counted, so
the counts measure the model and not the code.
"""

import dataclasses

import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.model.adaptive import (
  cluster_bounds,
  cluster_width,
  has_projection,
)


@dataclasses.dataclass(frozen=True)
class Operations:
  """Operations a token of the forward pass, all layers together.

  Attributes:
    projections: queries, keys, values and output of the attention.
    feed_forward: both matrices.
    positions: the projection of the table R, shared by the rows of a batch.
    memory: keys and values of the memory, projected again at each segment.
    attention: scores and weighted values, of the visible keys.
    softmax: the head, and each cluster for the tokens that are in it.
  """

  projections: float
  feed_forward: float
  positions: float
  memory: float
  attention: float
  softmax: float

  @property
  def forward(self) -> float:
    """Their sum."""
    return sum(dataclasses.astuple(self))

  @property
  def training(self) -> float:
    """Forward and backward: three times as much, for the memory only twice.

    The backward pass of a product is two products, but no gradient goes into
    what is remembered.
    """
    return 3 * self.forward - self.memory


def operations_per_token(
  config: ModelConfig,
  *,
  batch_size: int,
  segment_length: int,
  counts_V: np.ndarray | None = None,
) -> Operations:
  """Counts the forward pass of a segment, the memory full.

  Args:
    config: the model.
    batch_size: rows B.
    segment_length: tokens T of a row.
    counts_V: how often each id occurs, in any unit; None takes
      `natural_frequencies`.
  """
  D, inner = config.d_model, config.n_heads * config.d_head
  n_layers, remembered = config.n_layers, config.memory_length / segment_length
  relative = config.position_encoding == 'relative'
  keys_a_token = (1 + remembered) / batch_size
  # Content scores, position scores and values; absolute positions have no
  # scores of their own.
  products = 2 if config.absolute_positions else 3
  visible = visible_keys_per_query(config, segment_length)
  return Operations(
    projections=n_layers * 2 * 4 * D * inner,
    feed_forward=n_layers * 2 * 2 * D * config.d_ff,
    positions=n_layers * 2 * D * inner * keys_a_token if relative else 0.0,
    memory=n_layers * 2 * 2 * D * inner * remembered,
    attention=n_layers * 2 * products * inner * visible,
    softmax=_softmax(config, counts_V),
  )


def training_operations_per_token(
  config: ModelConfig, *, batch_size: int, segment_length: int
) -> float:
  """Operations a token of a training step: the unit of model FLOP utilisation.

  Args:
    config: the model.
    batch_size: rows B.
    segment_length: tokens T of a row.
  """
  sizes = dict(batch_size=batch_size, segment_length=segment_length)
  return operations_per_token(config, **sizes).training


def visible_keys_per_query(config: ModelConfig, segment_length: int) -> float:
  """Keys that a query sees on average: M + (T + 1) / 2 without a span."""
  seen_T = config.memory_length + np.arange(1, segment_length + 1)
  if config.attention_span is not None:
    seen_T = np.minimum(seen_T, config.attention_span)
  return float(seen_T.mean())


def natural_frequencies(size: int) -> np.ndarray:
  """How often the words of a text occur, by rank, as shares of all [V].

  Zipf's law, which falls off faster from about rank 5,000 on (Montemurro 2001):
  the word of rank r has the weight 1 / (r (1 + r / 5000)^(2/3)). Of 267,735
  words the first 20,000 then cover 95 % of the text.
  """
  rank_V = np.arange(1, size + 1)
  weight_V = 1 / (rank_V * (1 + rank_V / 5000) ** (2 / 3))
  return weight_V / weight_V.sum()


def _softmax(config: ModelConfig, counts_V: np.ndarray | None) -> float:
  if counts_V is None:
    counts_V = natural_frequencies(config.vocab_size)
  total = 0.0
  for i, (low, high) in enumerate(cluster_bounds(config)):
    width = cluster_width(config, i)
    columns = high - low + (len(config.cutoffs) if i == 0 else 0)
    projected = config.d_model if has_projection(config, i) else 0
    # Every token needs the head, and its own cluster if it is another.
    share = counts_V[low:high].sum() / counts_V.sum() if i else 1.0
    total += share * 2 * width * (columns + projected)
  return float(total)
