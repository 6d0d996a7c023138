"""What decoding computes is what scoring the same tokens computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax

SIZES = dict(n_layers=2, n_heads=2, d_model=16, d_head=8, d_ff=32)
CONFIGS = {
  'span': dict(memory_length=24, attention_span=24, clamp_length=10),
  'adaptive': dict(
    memory_length=80, untie_biases=True, cutoffs=(6, 20), div_val=2
  ),
  'pre-norm': dict(memory_length=24, attention_span=25, pre_norm=True),
}


@functools.cache
def _model(name: str) -> tuple[txl_jax.ModelConfig, dict]:
  config = txl_jax.ModelConfig(
    vocab_size=40, init_std=0.3, **SIZES, **CONFIGS[name]
  )
  return config, txl_jax.init_params(config, jax.random.key(0))


def _case(name: str, kind: str, slow: bool, **options):
  marks = pytest.mark.slow if slow else ()
  return pytest.param(name, kind, options, marks=marks)


@pytest.mark.parametrize(
  ('name', 'kind', 'options'),
  [
    _case('span', 'keys and values', True, temperature=0.7, top_k=20),
    _case('span', 'hidden', True, temperature=0.7, top_k=20),
    _case('adaptive', 'keys and values', False),
    _case('adaptive', 'keys and values', True, temperature=0),
    _case('pre-norm', 'keys and values', True, min_p=0.05),
  ],
)
def test_decoding_equals_scoring(name, kind, options):
  config, params = _model(name)
  memory = txl_jax.init_memory(config, 2)
  if kind != 'hidden':
    memory = txl_jax.project_memory(config, params, memory)
  prompt_BT = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])
  result = txl_jax.generate_with_log_probs(
    config,
    params,
    prompt_BT,
    memory,
    length=75,
    key=jax.random.key(1),
    **options,
  )
  assert result.lengths_B.tolist() == [75, 75]
  assert type(result.memory) is type(memory)
  text_BT = jnp.concatenate([prompt_BT, result.tokens_BL], axis=1)
  nll_BT, after = txl_jax.score(
    config, params, text_BT[:, :-1], text_BT[:, 1:], memory
  )
  np.testing.assert_allclose(
    result.logp_BL, -nll_BT[:, 3:], rtol=1e-5, atol=1e-5
  )
  n_valid = int(after.valid_B[0])
  assert result.memory.valid_B.tolist() == [n_valid, n_valid]
  for found, expected in zip(
    jax.tree.leaves(result.memory.layers), jax.tree.leaves(after.layers)
  ):
    np.testing.assert_allclose(
      found[:, :, -n_valid:], expected[:, :, -n_valid:], rtol=1e-4, atol=1e-5
    )
