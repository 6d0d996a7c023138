"""The gradient of the adaptive embedding's tables."""

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.model.adaptive import AdaptiveEmbedding

V, D = 20, 16


@pytest.mark.parametrize('div_val', [1, 2])
def test_gradients_of_a_frequent_token_add_up_in_float32(div_val):
  config = txl_jax.ModelConfig(
    vocab_size=V, cutoffs=(5, 11), div_val=div_val, d_model=D, dtype='bfloat16'
  )
  # One id is outside the vocabulary.
  tokens_BT = np.where(np.arange(1000) == 7, V, 13).reshape(2, 500)
  embedding = AdaptiveEmbedding(config)
  params = embedding.init(jax.random.key(0), tokens_BT)
  if div_val > 1:
    projection_ED = np.ones_like(params['params']['projection_2'])
    params['params']['projection_2'] = projection_ED

  def total(params):
    return embedding.apply(params, tokens_BT).astype(np.float32).sum()

  gradients = jax.jit(jax.grad(total))(params)['params']
  expected = {name: np.zeros(g.shape) for name, g in gradients.items()}
  # bfloat16 could not count beyond 256.
  if div_val == 1:
    expected['table_0'][13] = 999 * np.sqrt(D)
  else:
    expected['table_2'][13 - 11] = 999 * np.sqrt(D) * D
  for name in {'table_0', 'table_1', 'table_2'} & expected.keys():
    np.testing.assert_array_equal(gradients[name], expected[name])
