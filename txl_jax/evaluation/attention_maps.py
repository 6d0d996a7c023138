"""Where each head looks, and why (Dai et al. 2019, appendix D).

A score has four terms (section 3.3): for query i and key j at distance d

  (a) q_i . k_j    content        (b) q_i . r_d    content-dependent position
  (c) u . k_j      global content (d) v . r_d      global position

Attention does not keep its scores, so they are computed again: a memory as long
as the text holds the input of each layer at each token.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model import memory as memory_lib
from txl_jax.model.attention import project
from txl_jax.model.transformer import TransformerXL
from txl_jax.ops.layer_norm import layer_norm
from txl_jax.ops.sinusoids import sinusoid_table

TERMS = ('content', 'content position', 'global content', 'global position')


class AttentionMaps(NamedTuple):
  """Attention by distance, distance 0 (the query itself) first.

  W is the number of keys that a query sees.

  Attributes:
    average_NHW: attention of each layer's heads, the mean over the queries.
    terms_4NHW: the four terms of the scaled scores, means over the queries that
      see so far back.
    example_NHW: attention of the last query alone.
  """

  average_NHW: np.ndarray
  terms_4NHW: np.ndarray
  example_NHW: np.ndarray


def attention_maps(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  *,
  width: int,
  n_queries: int,
  boundary: int | None = None,
  clamp_length: int | None = None,
) -> AttentionMaps:
  """The attention of the last queries of a text.

  Args:
    model: as trained, with the paper's own encoding of position.
    params: its parameters.
    tokens: ids of a text [n], at least `width + n_queries` of them. More text
      before these makes what is remembered more like that of a long text.
    width: keys W that each query sees, itself included.
    n_queries: the last tokens of the text, whose attention is averaged.
    boundary: the id that begins a document: nothing before it is seen.
    clamp_length: larger distances count as this one; None = no limit.

  Raises:
    InputError: for another encoding of position, or too short a text.
  """
  if model.position_encoding != 'relative':
    raise InputError(
      'attention maps split scores into the terms of position_encoding '
      f"'relative', found {model.position_encoding!r}"
    )
  if len(tokens) < width + n_queries:
    raise InputError(
      f'the text has {len(tokens):,} tokens, expected at least the '
      f'{width + n_queries:,} of {width:,} keys and {n_queries:,} queries'
    )
  model = dataclasses.replace(
    model,
    dtype='float32',
    memory_length=len(tokens),
    attention_span=width,
    clamp_length=clamp_length,
    memory_start='empty',
    remat=False,
  )
  tokens_1T = jnp.asarray(tokens, jnp.int32)[None]
  starts_1T = None if boundary is None else tokens_1T == boundary
  maps = _maps(model, params, tokens_1T, starts_1T, n_queries)
  return AttentionMaps(*map(np.asarray, maps))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _maps(
  model: ModelConfig,
  params: dict,
  tokens_1T: jax.Array,
  starts_1T: jax.Array | None,
  n_queries: int,
) -> AttentionMaps:
  memory = memory_lib.init_memory(model, 1)
  first_1T = memory_lib.visibility(
    jnp.zeros(1, jnp.int32),
    starts_1T,
    memory_length=0,
    segment_length=tokens_1T.shape[1],
    attention_span=model.attention_span,
  )
  _, memory = TransformerXL(model).apply(
    {'params': params}, tokens_1T, memory, starts_1T
  )
  shared = {
    name: params[name]
    for name in ('content_bias', 'position_bias')
    if name in params
  }

  def of_layer(layer: tuple) -> AttentionMaps:
    layer_params, hidden_TD = layer
    attention = {**shared, **layer_params['attention']}
    if model.pre_norm:
      norm = layer_params['attention_norm']
      epsilon = model.layer_norm_epsilon
      hidden_TD = layer_norm(hidden_TD, norm['scale'], norm['bias'], epsilon)
    terms_4QHW = score_terms(model, attention, hidden_TD, n_queries)
    return _summarised(terms_4QHW, first_1T[0, -n_queries:], len(hidden_TD))

  layers = params['layers'], memory.hidden_NBMD[:, 0]
  # Layers lead in what the map returns.
  average_NHW, terms_N4HW, example_NHW = jax.lax.map(of_layer, layers)
  return AttentionMaps(average_NHW, terms_N4HW.swapaxes(0, 1), example_NHW)


def score_terms(
  model: ModelConfig, attention: dict, hidden_TD: jax.Array, n_queries: int
) -> jax.Array:
  """The four terms of the last queries' scores, scaled by 1 / sqrt(C).

  Args:
    model: its span is the number W of distances.
    attention: parameters of the layer's attention, u and v included.
    hidden_TD: (normalised, if pre-norm) input of the layer at each token.
    n_queries: Q.

  Returns:
    Terms [4, Q, H, W], distance 0 first; meaningless where a distance reaches
    before the text.
  """
  n_tokens, width = len(hidden_TD), model.attention_span
  q_QHC = project(hidden_TD[None, -n_queries:], attention['query'])[0]
  k_THC = project(hidden_TD[None], attention['key'])[0]
  table_WD = sinusoid_table(width, model.d_model, model.clamp_length)[::-1]
  r_WHC = project(table_WD[None], attention['relative'])[0]
  u_HC, v_HC = attention['content_bias'], attention['position_bias']
  query_Q1 = jnp.arange(n_tokens - n_queries, n_tokens)[:, None]
  key_QW = jnp.maximum(query_Q1 - jnp.arange(width), 0)
  content_QHT = jnp.einsum('qhc,thc->qht', q_QHC, k_THC)
  shape = (n_queries, model.n_heads, width)
  terms = (
    jnp.take_along_axis(content_QHT, key_QW[:, None], axis=2),
    jnp.einsum('qhc,whc->qhw', q_QHC, r_WHC),
    jnp.einsum('hc,thc->ht', u_HC, k_THC)[:, key_QW].swapaxes(0, 1),
    jnp.broadcast_to(jnp.einsum('hc,whc->hw', v_HC, r_WHC), shape),
  )
  return jnp.stack(terms) * model.d_head**-0.5


def _summarised(
  terms_4QHW: jax.Array, first_Q: jax.Array, n_tokens: int
) -> AttentionMaps:
  """Means over the queries, and the last one.

  Args:
    terms_4QHW: of one layer.
    first_Q: the first token that each query sees.
    n_tokens: of the text, the last of which are the queries.
  """
  _, n_queries, _, width = terms_4QHW.shape
  query_Q1 = jnp.arange(n_tokens - n_queries, n_tokens)[:, None]
  visible_Q1W = ((query_Q1 - jnp.arange(width)) >= first_Q[:, None])[:, None]
  score_QHW = jnp.where(visible_Q1W, terms_4QHW.sum(axis=0), -jnp.inf)
  attention_QHW = jax.nn.softmax(score_QHW)
  seen_1W = jnp.maximum(visible_Q1W.sum(axis=0), 1)
  terms_4HW = jnp.where(visible_Q1W, terms_4QHW, 0).sum(axis=1) / seen_1W
  return AttentionMaps(attention_QHW.mean(axis=0), terms_4HW, attention_QHW[-1])
