"""Layer norm against its formula, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.ops.layer_norm import layer_norm


def _formula(x, scale_D, bias_D, epsilon):
  variance = x.var(-1, keepdims=True)
  normed = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + epsilon)
  return normed * scale_D + bias_D


@pytest.mark.parametrize('shift', [0.0, 30.0])
def test_values_and_gradients(shift):
  keys = jax.random.split(jax.random.key(0), 4)
  x_BTD = jax.random.normal(keys[0], (3, 5, 41)) + shift
  scale_D, bias_D = jax.random.normal(keys[1], (2, 41))
  weight_BTD = jax.random.normal(keys[2], x_BTD.shape)

  def measure(norm, *inputs):
    def loss(x_BTD, scale_D, bias_D):
      return (weight_BTD * norm(x_BTD, scale_D, bias_D, 1e-5)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)

  found = measure(layer_norm, x_BTD, scale_D, bias_D)
  with jax.enable_x64(True):
    wide = [x.astype(jnp.float64) for x in (x_BTD, scale_D, bias_D)]
    expected = measure(_formula, *wide)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


def test_statistics_are_wide_and_dtypes_kept():
  # In bfloat16 the mean of these would be 256 or 258.
  x_D = jnp.array([256.0, 258.0] * 64, jnp.bfloat16)
  ones_D, zeros_D = jnp.ones(128), jnp.zeros(128)

  def loss(x_D, scale_D):
    return layer_norm(x_D, scale_D, zeros_D, 0.0).astype(jnp.float32)[1]

  out_D = layer_norm(x_D, ones_D, zeros_D, 0.0)
  assert out_D.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out_D.astype(jnp.float32), [-1, 1] * 64)
  dx_D, dscale_D = jax.grad(loss, argnums=(0, 1))(x_D, ones_D)
  assert (dx_D.dtype, dscale_D.dtype) == (jnp.bfloat16, jnp.float32)
