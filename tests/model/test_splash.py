"""Models whose attention goes through the kernel for TPUs, interpreted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.ops import relative_attention, splash_attention

B, T, M = 2, 12, 9
CONFIG = txl_jax.ModelConfig(
  vocab_size=11,
  n_layers=2,
  n_heads=2,
  d_model=20,  # computed with 24
  d_head=10,  # 16
  d_ff=32,
  memory_length=M,
  dropout=0.3,
  position_dropout='feature',
  init_std=0.4,
)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(splash_attention, 'INTERPRET', True)


def _loss_and_gradient(implementation, **change):
  config = dataclasses.replace(
    CONFIG, attention_implementation=implementation, **change
  )
  text_BL = jax.random.randint(jax.random.key(1), (B, T + 1), 0, 11)
  hidden_NBMD = jax.random.normal(jax.random.key(2), (2, B, M, 20))
  memory = txl_jax.Memory(hidden_NBMD, jnp.array([M, 4]))
  starts_BT = jnp.zeros((B, T), bool).at[0, 5].set(True)

  def loss(params):
    nll_BT, _ = txl_jax.score(
      *(config, params, text_BL[:, :-1], text_BL[:, 1:], memory),
      starts_BT=starts_BT,
      dropout_key=jax.random.key(5),
    )
    return nll_BT.sum()

  params = txl_jax.init_params(CONFIG, jax.random.key(0))
  return jax.jit(jax.value_and_grad(loss))(params)


def _assert_same(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
    found,
    expected,
  )


@pytest.mark.parametrize('change', [{}, {'attention_span': 8}], ids=str)
def test_a_model_has_the_losses_and_gradients_of_the_reference(
  change, interpreted
):
  found = _loss_and_gradient('splash', **change)
  _assert_same(found, _loss_and_gradient('reference', **change))


@pytest.mark.parametrize(
  'change',
  [
    {'clamp_length': 5},
    {'attention_dropout': 0.2},
    {'position_dropout': 'element'},
  ],
  ids=str,
)
def test_where_it_cannot_be_exact_it_is_not_taken(change, monkeypatch):
  with pytest.raises(InputError, match="'splash' needs a table of whole sinu"):
    _loss_and_gradient('splash', **change)
  expected = _loss_and_gradient('xla', **change)
  monkeypatch.setattr(relative_attention, 'on_tpu', lambda: True)
  _assert_same(_loss_and_gradient('auto', **change), expected)


def test_elsewhere_it_is_refused():
  with pytest.raises(InputError, match="needs a TPU, found platform 'cpu'"):
    # A configuration that no other test has traced.
    _loss_and_gradient('splash', layer_norm_epsilon=1e-4)
