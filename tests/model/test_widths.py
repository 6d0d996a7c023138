"""Layers of odd widths compute with padded ones; nobody can tell."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.model import transformer
from txl_jax.model.widths import pad_layer, pads, widths

ODD = txl_jax.ModelConfig(
  vocab_size=11,
  n_layers=2,
  n_heads=2,
  d_model=10,
  d_head=9,
  d_ff=21,
  memory_length=5,
  dropout=0.3,
  attention_dropout=0.3,
  init_std=0.4,
)


@pytest.mark.parametrize(
  'change', [{}, {'pre_norm': True, 'untie_biases': True}], ids=['post', 'pre']
)
def test_padding_changes_nothing(monkeypatch, change):
  config = dataclasses.replace(ODD, **change)
  model = txl_jax.TransformerXL(config)
  params = txl_jax.init_params(config, jax.random.key(0))
  text_BL = jax.random.randint(jax.random.key(1), (3, 5), 0, 11)
  hidden_NBMD = jax.random.normal(jax.random.key(2), (2, 3, 5, 10))
  memory = txl_jax.Memory(hidden_NBMD, jnp.array([0, 3, 5]))

  def loss(params, memory):
    nll_BT, memory = model.apply(
      {'params': params},
      *(text_BL[:, :-1], text_BL[:, 1:], memory),
      train=True,
      rngs={'dropout': jax.random.key(3)},
      method='score',
    )
    return nll_BT.sum(), memory

  def measure():
    # Another lambda each time, else JAX would not compile again.
    step = jax.value_and_grad(lambda *args: loss(*args), has_aux=True)
    return jax.jit(step)(params, memory)

  padded = []
  monkeypatch.setattr(
    transformer,
    'pad_layer',
    lambda *args: padded.append(1) or pad_layer(*args),
  )
  found = measure()
  assert padded
  monkeypatch.setattr(transformer, 'pads', lambda config: False)
  expected = measure()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
    found,
    expected,
  )


def test_which_widths_are_padded():
  paper = dataclasses.replace(ODD, d_model=410, d_head=41, d_ff=2100)
  assert widths(paper, True) == (416, 48, 2104)
  assert widths(paper, False) == (410, 41, 2100)
  assert pads(paper)
  assert not pads(dataclasses.replace(ODD, d_model=16, d_head=8, d_ff=32))
  assert not pads(
    dataclasses.replace(paper, position_encoding='shaw', n_positions=4)
  )
