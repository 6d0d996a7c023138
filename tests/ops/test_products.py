"""Products of activations and weights, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.ops import products as lib
from txl_jax.parallel import mesh as mesh_lib


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('rows', [(2, 3), (15, 20), (2, 64)])
def test_gradients_are_those_of_a_plain_product(rows):
  x, w_DE = _normal(0, *rows, 20), _normal(1, 20, 24)
  gradient = _normal(2, *rows, 24)
  found, back = jax.vjp(lib.product, x, w_DE)
  expected, plain = jax.vjp(lambda x, w: x @ w, x, w_DE)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for ours, theirs in zip(back(gradient), plain(gradient)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('length', [10, 16])
def test_memory_and_segment_are_projected_as_one(length):
  operands = _normal(0, 3, 6, 8), _normal(1, 3, 4, 8), _normal(2, 8, 2, 5)

  def plain(memory_BMD, hidden_BTD, w_DHC):
    both = (lib.project(x, w_DHC) for x in (memory_BMD, hidden_BTD))
    whole = jnp.concatenate(list(both), axis=1)
    return jnp.pad(whole, ((0, 0), (0, length - 10), (0, 0), (0, 0)))

  gradient = _normal(3, 3, length, 2, 5)
  found, back = jax.vjp(lambda *x: lib.project_both(*x, length), *operands)
  expected, theirs = jax.vjp(plain, *operands)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for ours, other in zip(back(gradient), theirs(gradient)):
    np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_rows_are_divided_where_powers_of_two_would_not_do():
  # As many groups as fill a GPU, of a multiple of 8 rows.
  assert lib._groups(9000, 416, 2104) == 3
  assert lib._groups(9000, 416, 480) == 9
  assert lib._groups(11264, 512, 512) == 1
  assert lib._groups(9001, 416, 480) == 1


def test_rows_on_several_devices_are_not_regrouped():
  with mesh_lib.sharded(mesh_lib.make_mesh(devices=jax.devices()[:2])):
    assert lib._groups(9000, 416, 480) == 1


def test_no_gradient_of_the_memory_is_computed_unasked():
  M, T, D = 96, 32, 64
  memory_BMD, hidden_BTD = _normal(0, 2, M, D), _normal(1, 2, T, D)
  w_DHC = _normal(2, D, 4, 16)

  def operations(argnums):
    def loss(*operands):
      return (lib.project_both(*operands, M + T) ** 2).sum()

    run = jax.jit(jax.grad(loss, argnums=argnums))
    compiled = run.lower(memory_BMD, hidden_BTD, w_DHC).compile()
    return compiled.cost_analysis()['flops']

  product = 2 * 2 * M * D * D
  assert operations((0, 1, 2)) - operations((1, 2)) > 0.9 * product
