"""What the layer hands to the operators that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import ModelConfig
from txl_jax.model.layer import Layer
from txl_jax.ops import projections
from txl_jax.ops.sinusoids import sinusoid_table

CONFIG = ModelConfig(
  vocab_size=96,
  n_layers=1,
  n_heads=2,
  d_model=32,
  d_head=16,
  d_ff=64,
  memory_length=8,
)


@pytest.mark.parametrize('factor', [0.0, 1.0])
def test_all_gradients_of_the_input_go_through_the_kernel(factor, monkeypatch):
  monkeypatch.setattr(projections, 'takes_kernel', lambda *_: True)
  monkeypatch.setattr(
    projections, '_gradient', lambda *operands: factor * operands[-1]
  )
  x_BTD = jax.random.normal(jax.random.key(0), (2, 4, 32))
  memory_BMD = jax.random.normal(jax.random.key(1), (2, 8, 32))
  table_KD = sinusoid_table(12, 32, dtype=jnp.float32)
  layer = Layer(CONFIG, train=False)

  def run(params, x_BTD):
    first_BT = jnp.zeros((2, 4), jnp.int32)
    operands = x_BTD, memory_BMD, table_KD, None, first_BT
    return (layer.apply(params, *operands)[0] * jnp.arange(32)).sum()

  params = layer.init(
    *(jax.random.key(2), x_BTD, memory_BMD, table_KD, None),
    jnp.zeros((2, 4), jnp.int32),
  )
  found = np.abs(jax.grad(run, argnums=1)(params, x_BTD))
  assert found.max() == 0 if factor == 0 else found.min() > 0
