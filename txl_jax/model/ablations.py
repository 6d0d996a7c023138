"""The encodings of position that the paper compares its own with (section 4.2).

- `shaw`: learned embeddings of relative distance (Shaw et al. 2018), in each
  layer, in the form of the paper's code: a content bias u and a bias for each
  distance beside them.
- `sinusoid`: absolute sinusoids added to the embedding (Vaswani et al. 2017).
- `learned`: absolute embeddings added to the input of each layer (Al-Rfou et
  al. 2018): with memory length 0 this is the vanilla Transformer.

An absolute position belongs to the token: it is added once, when the token is
read, and stays in what is remembered of it. Positions run from the first to the
last of `n_positions` and begin anew, so with segments of that length each
segment gets the same ones, as in the paper's "h_{t+1} = f(h_t, E + U_1:L)"
(section 3.3); and consecutive segments are one long pass.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.model.attention import Attention, RelativeAttention
from txl_jax.ops.reference_attention import attend, shift
from txl_jax.ops.sinusoids import Sinusoids, sinusoid_table


def attention_class(config: ModelConfig) -> type[Attention]:
  """The attention sublayer of the encoding that the model uses."""
  known = {'relative': RelativeAttention, 'shaw': ShawAttention}
  return known.get(config.position_encoding, AbsoluteAttention)


def position_in_period(segment_length: int, n_positions: int) -> jax.Array:
  """The absolute position of each token of a segment, int [T].

  The last token has the last position, whatever the segment's length.
  """
  return (jnp.arange(segment_length) - segment_length) % n_positions


def absolute_sinusoids(config: ModelConfig, segment_length: int) -> jax.Array:
  """What `sinusoid` adds to the embeddings of a segment [T, D].

  As in the paper's code the sinusoids count down, to 0 at the last position.
  """
  wide = jnp.promote_types(config.dtype, jnp.float32)
  table_PD = sinusoid_table(config.n_positions, config.d_model, dtype=wide)
  position_T = position_in_period(segment_length, config.n_positions)
  return table_PD[position_T].astype(config.dtype)


class LearnedPositions(nn.Module):
  """Adds a layer's own embeddings of absolute position to its input."""

  config: ModelConfig

  @nn.compact
  def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
    """The hidden states with their positions."""
    config = self.config
    init = nn.initializers.normal(config.init_std)
    shape = (config.n_positions, config.d_model)
    table_PD = self.param('table', init, shape).astype(config.dtype)
    T = hidden_BTD.shape[1]
    return hidden_BTD + table_PD[position_in_period(T, config.n_positions)]


class AbsoluteAttention(Attention):
  """Plain attention: positions are in the hidden states already."""

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
    """One term a score: q . k."""
    score_BHTK = jnp.einsum('bthc,bkhc->bhtk', q_BTHC, k_BKHC)
    return attend(_scaled(score_BHTK, self.config), v_BKHC, first_BT, **dropout)


class ShawAttention(Attention):
  """Learned embeddings of distance: row d of the table stands for distance d.

  Distances from `n_positions` on, or above `clamp_length`, count as the largest
  below.
  """

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
    """Three terms a score: (q + u) . k + q . a_d + b_d."""
    config = self.config
    P, H, C = config.n_positions, config.n_heads, config.d_head
    embedding_PHC = self.kernel('distance_embedding', P, H, C)
    bias_PH = self.param('distance_bias', nn.initializers.zeros, (P, H))
    farthest = P - 1
    if config.clamp_length is not None:
      farthest = min(farthest, config.clamp_length)
    # One row per key, distances K - 1 to 0, as `shift` wants them.
    row_K = jnp.minimum(jnp.arange(k_BKHC.shape[1])[::-1], farthest)
    content_BHTK = jnp.einsum(
      'bthc,bkhc->bhtk', q_BTHC + self.kernel('content_bias', H, C), k_BKHC
    )
    raw_BHTK = jnp.einsum('bthc,khc->bhtk', q_BTHC, embedding_PHC[row_K])
    raw_BHTK = _wide(raw_BHTK) + bias_PH[row_K].T[:, None]
    score_BHTK = _wide(content_BHTK) + shift(raw_BHTK)
    return attend(_scaled(score_BHTK, config), v_BKHC, first_BT, **dropout)


def _scaled(score_BHTK: jax.Array, config: ModelConfig) -> jax.Array:
  return _wide(score_BHTK) * config.d_head**-0.5


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
