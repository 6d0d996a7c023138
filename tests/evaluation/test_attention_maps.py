"""Attention maps are the attention of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.evaluation.attention_maps import attention_maps, score_terms
from txl_jax.ops.relative_attention import relative_attention
from txl_jax.ops.sinusoids import sinusoid_table

WIDTH, QUERIES, N = 16, 5, 40
MODEL = txl_jax.ModelConfig(
  vocab_size=30, n_layers=2, n_heads=2, d_model=16, d_head=16, d_ff=16,
  memory_length=4, init_std=0.4,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 29, N).astype(np.uint16)
BOUNDARY = 29


def _params(model: txl_jax.ModelConfig) -> dict:
  return txl_jax.init_params(model, jax.random.key(0))


def _maps(model=MODEL, tokens=TOKENS, **options):
  sizes = {'width': WIDTH, 'n_queries': QUERIES, **options}
  return attention_maps(model, _params(model), tokens, **sizes)


def _attention_of_the_operator(model, attention, hidden_TD):
  """Of the last token [H, W], by values that tell the last W keys apart."""
  q_1THC, k_1THC = (
    jnp.einsum('td,dhc->thc', hidden_TD, attention[name])[None]
    for name in ('query', 'key')
  )
  values_TC = jnp.eye(N)[:, N - WIDTH :][:, ::-1]
  out_1THC = relative_attention(
    *(q_1THC, k_1THC, jnp.stack([values_TC] * model.n_heads, axis=1)[None]),
    sinusoid_table(N, model.d_model, model.clamp_length),
    *(attention[name] for name in ('relative', 'content_bias')),
    attention['position_bias'],
    jnp.maximum(jnp.arange(N)[None] - WIDTH + 1, 0),
    implementation='reference',
  )
  return out_1THC[0, -1]


@pytest.mark.parametrize(
  'options',
  [{}, {'pre_norm': True, 'untie_biases': True, 'clamp_length': 6}],
)
def test_the_example_is_what_the_operator_attends_to(options):
  model = dataclasses.replace(MODEL, **options)
  params = _params(model)
  maps = _maps(model, clamp_length=model.clamp_length)
  # The input of the first layer is the embedding.
  hidden_TD = params['embedding']['table_0'][TOKENS] * model.d_model**0.5
  layer = jax.tree.map(lambda leaf: leaf[0], params['layers'])
  if model.pre_norm:
    centred_TD = hidden_TD - hidden_TD.mean(-1, keepdims=True)
    norm = layer['attention_norm']
    hidden_TD = centred_TD / jnp.sqrt(hidden_TD.var(-1, keepdims=True) + 1e-5)
    hidden_TD = hidden_TD * norm['scale'] + norm['bias']
  shared = {
    name: params[name]
    for name in ('content_bias', 'position_bias')
    if name in params
  }
  attention = {**shared, **layer['attention']}
  expected_HW = _attention_of_the_operator(model, attention, hidden_TD)
  np.testing.assert_allclose(maps.example_NHW[0], expected_HW, atol=1e-5)
  spanned = dataclasses.replace(
    model, attention_span=WIDTH, memory_length=N, dtype='float32'
  )
  terms_4QHW = score_terms(spanned, attention, hidden_TD, QUERIES)
  np.testing.assert_allclose(
    terms_4QHW.mean(axis=1), maps.terms_4NHW[:, 0], atol=1e-5
  )


def test_shares_sum_to_one_and_the_last_query_is_one_of_the_average():
  maps = _maps()
  assert maps.average_NHW.shape == (2, 2, WIDTH)
  assert maps.terms_4NHW.shape == (4, 2, 2, WIDTH)
  for shares_NHW in (maps.average_NHW, maps.example_NHW):
    np.testing.assert_allclose(shares_NHW.sum(-1), 1, rtol=1e-5)
  singles = [
    _maps(tokens=TOKENS[: N - back], n_queries=1).example_NHW
    for back in range(QUERIES)
  ]
  np.testing.assert_allclose(maps.average_NHW, sum(singles) / 5, atol=1e-5)


def test_nothing_before_a_document_is_seen():
  tokens = TOKENS.copy()
  tokens[-8] = BOUNDARY
  maps = _maps(tokens=tokens, boundary=BOUNDARY)
  assert (maps.example_NHW[..., 8:] == 0).all()
  assert (maps.example_NHW[..., :8] > 0).all()
  assert (maps.average_NHW[..., 8:] == 0).all()
  assert (_maps(tokens=tokens).example_NHW[..., 8:] > 0).all()


def test_mistakes_are_told():
  with pytest.raises(InputError, match='expected at least the 41'):
    _maps(width=30, n_queries=11)
  shaw = dataclasses.replace(MODEL, position_encoding='shaw', n_positions=4)
  with pytest.raises(InputError, match="'relative', found 'shaw'"):
    _maps(shaw)
