"""The projections to queries, keys and values, and their kernel for Hopper."""

import jax
import jax.numpy as jnp
import kernel_checks as checks
import numpy as np
import pytest

from txl_jax.ops import hopper
from txl_jax.ops import projections as lib

# B, T, M, keys and values behind these, D, H, C
CASES = {
  'rows of half a block': (4, 64, 40, 8, 128, 2, 32),
  'blocks of two rows': (4, 64, 192, 0, 128, 2, 64),
  'more steps than are fetched at once': (3, 128, 128, 0, 256, 2, 128),
  'without memory': (2, 192, 0, 0, 128, 1, 128),
}
LARGE = {
  'enwik8, 12 layers': (22, 512, 512, 0, 512, 8, 64),
  'WikiText-103 base': (64, 192, 192, 0, 512, 8, 64),
}
NAMES = ('q', 'k', 'v', 'passed', 'memory', 'hidden', 'w_q', 'w_k', 'w_v')


def _operands(case, dtype=jnp.bfloat16):
  """Those of the operator, and the gradients of its results."""
  B, T, M, behind, D, H, C = case
  L = M + T + behind
  keys = iter(jax.random.split(jax.random.key(0), 9))

  def normal(*shape, scale=1.0):
    return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

  weights = tuple(normal(D, H, C, scale=D**-0.5) for _ in range(3))
  gradients = normal(B, T, H, C), normal(B, L, H, C), normal(B, L, H, C)
  operands = normal(B, M, D), normal(B, T, D), weights
  return operands, (*gradients, normal(B, T, D))


def _results(implementation, operands, gradients):
  """The results, and the gradients of all operands."""

  def run(*operands):
    length = gradients[1].shape[1]
    return lib.projections(*operands, length, implementation=implementation)

  out, back = jax.vjp(run, *operands)
  memory, hidden, weights = back(gradients)
  return *out, memory, hidden, *weights


_compiled = jax.jit(_results, static_argnums=0)


@pytest.fixture
def on_hopper(monkeypatch):
  with checks.on_hopper(monkeypatch, lib, '_LEAST_BLOCKS'):
    yield


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_products, mosaic_tiles
  from txl_jax.ops import mosaic_projections as kernels

  both = kernels._forward, kernels._backward
  modules = mosaic_products, mosaic_tiles
  with checks.interpreted(monkeypatch, modules, both):
    yield


@checks.new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_results_and_gradients_interpreted(case, interpreted, capfd):
  # How a CPU rounds products of bfloat16 depends on the CPU.
  checks.assert_as_close_as_xla(_compiled, _operands(case), NAMES, slack=1.05)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@checks.needs_hopper
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  # XLA itself rounds the memory's gradient otherwise from case to case.
  with jax.default_matmul_precision('highest'):
    checks.assert_as_close_as_xla(
      _compiled, _operands(case), NAMES, slack=1.001
    )


@checks.new_enough
@pytest.mark.parametrize(
  'case, expected', [('rows of half a block', 1), ('blocks of two rows', 2)]
)
def test_it_compiles_for_an_h200(case, expected, on_hopper):
  operands = _operands(CASES[case])
  assert checks.kernels_for_an_h200(_results, operands) == expected


@pytest.mark.parametrize('mesh', checks.MESHES)
@pytest.mark.parametrize(
  'case', [(8, 16, 24, 8, 32, 2, 16), (8, 64, 64, 0, 32, 2, 64)]
)
def test_around_the_kernels_all_is_the_same(case, mesh, monkeypatch):
  def project(memory_BMD, hidden_BTD, weights):
    w_q, w_k, w_v = weights
    whole_BLD = jnp.concatenate([memory_BMD, hidden_BTD], axis=1)
    return hidden_BTD @ w_q, whole_BLD @ w_k, whole_BLD @ w_v, whole_BLD

  def gradient(M, dq_BTE, dk_BLE, dv_BLE, weights, around_BTD):
    T = dq_BTE.shape[1]
    for w_DE, gradient in zip(weights, (dq_BTE, dk_BLE[:, M:], dv_BLE[:, M:])):
      around_BTD += gradient[:, :T] @ w_DE.T
    return around_BTD

  monkeypatch.setattr(lib, '_project', project)
  monkeypatch.setattr(lib, '_gradient', gradient)
  monkeypatch.setattr(lib, 'takes_kernel', lambda name, *_: name == 'auto')
  checks.assert_the_same(_results, _operands(case, jnp.float32), mesh)


def test_the_kernel_is_given_the_gradient_of_what_is_passed(monkeypatch):
  monkeypatch.setattr(lib, '_gradient', lambda *operands: 2 * operands[-1])
  monkeypatch.setattr(lib, 'takes_kernel', lambda *_: True)
  operands, gradients = _operands((2, 16, 24, 8, 32, 2, 16), jnp.float32)
  of_hidden = _results('auto', operands, gradients)[5]
  np.testing.assert_array_equal(of_hidden, 2 * gradients[-1])


@pytest.mark.parametrize(
  'change',
  [
    dict(implementation='xla'),
    dict(dtype=jnp.float32),
    dict(weights=jnp.float32),
    dict(T=160),
    dict(D=448),
    dict(C=62),
    dict(B=32),
    dict(M=37),
    dict(length=390),
  ],
)
def test_what_the_kernel_cannot_do_is_left_to_xla(change, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  sizes = dict(implementation='auto', dtype=jnp.bfloat16, B=64, T=192, D=512)
  sizes |= dict(weights=jnp.bfloat16, C=64, M=192, length=384)

  def taken(implementation, dtype, weights, B, T, D, C, M, length):
    memory_BMD, hidden_BTD = (
      jax.ShapeDtypeStruct((B, size, D), dtype) for size in (M, T)
    )
    w_DHC = jax.ShapeDtypeStruct((D, 8, C), weights)
    return lib.takes_kernel(
      *(implementation, memory_BMD, hidden_BTD, w_DHC, length)
    )

  assert taken(**sizes)
  assert not taken(**sizes | change)


@checks.needs_devices(2)
@checks.BY_PART
def test_what_counts_is_the_part_of_a_device(mesh, expected, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)

  def taken(rows):
    x_BTD = jax.ShapeDtypeStruct((rows, 192, 512), jnp.bfloat16)
    w_DHC = jax.ShapeDtypeStruct((512, 8, 64), jnp.bfloat16)
    return lib.takes_kernel('auto', x_BTD, x_BTD, w_DHC, 384)

  assert checks.taken_by_two_devices(mesh, taken, 44) == expected
