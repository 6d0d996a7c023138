"""The feed-forward network and its kernels, interpreted and on Hopper."""

import functools

import jax
import jax.numpy as jnp
import kernel_checks as checks
import pytest

from txl_jax.ops import dropout, hopper
from txl_jax.ops import feed_forward as lib

# B, T, D, F, dropout rate
CASES = {
  'dropout': (2, 128, 64, 128, 0.25),
  'more steps than are fetched at once': (3, 128, 320, 256, 0.1),
  'without dropout': (1, 256, 192, 384, 0.0),
}
LARGE = {
  'enwik8, 12 layers': (22, 512, 512, 2048, 0.1),
  'enwik8, 24 layers': (16, 768, 1024, 3072, 0.15),
}
NAMES = ('out', 'x', 'w', 'bias', 'w_out')


def _operands(case, dtype=jnp.bfloat16):
  B, T, D, F, _ = case
  shapes = (B, T, D), (D, F), (F,), (F, D), (B, T, D)
  keys = jax.random.split(jax.random.key(0), len(shapes))
  sizes = (1, D**-0.5, 0.1, F**-0.5, 1)
  return [
    (size * jax.random.normal(key, shape)).astype(dtype)
    for key, shape, size in zip(keys, shapes, sizes)
  ]


def _results(rate, implementation, *operands):
  """The output, and the gradients of all operands."""
  *operands, gradient = operands

  def run(*operands):
    seed = jnp.uint32(5)
    return lib.feed_forward(
      *operands, seed, rate, implementation=implementation
    )

  out, back = jax.vjp(run, *operands)
  return out, *back(gradient)


def _assert_as_close_as_xla(case, slack):
  results = functools.partial(
    jax.jit(_results, static_argnums=(0, 1)), case[-1]
  )
  checks.assert_as_close_as_xla(results, _operands(case), NAMES, slack=slack)


@pytest.fixture
def on_hopper(monkeypatch):
  with checks.on_hopper(monkeypatch, lib, '_LEAST_BLOCKS'):
    yield


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_dropout, mosaic_products, mosaic_tiles
  from txl_jax.ops import mosaic_feed_forward as kernels

  modules = mosaic_dropout, mosaic_products, mosaic_tiles
  both = kernels._forward, kernels._backward
  with checks.interpreted(monkeypatch, modules, both):
    yield


@checks.new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_interpreted(case, interpreted, capfd):
  # How a CPU rounds products of bfloat16 depends on the CPU.
  _assert_as_close_as_xla(case, slack=1.1)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@checks.needs_hopper
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  with jax.default_matmul_precision('highest'):
    _assert_as_close_as_xla(case, slack=1.0)


@checks.new_enough
def test_it_compiles_for_an_h200(on_hopper):
  results = functools.partial(_results, 0.25)
  operands = _operands(CASES['dropout'])
  assert checks.kernels_for_an_h200(results, operands) == 2


def _plain(monkeypatch):
  """What the kernels do, by XLA."""

  def activated(rate, x_BTD, w_DF, bias_F, words_BT):
    index = jnp.arange(w_DF.shape[1], dtype=jnp.uint32)
    kept = dropout.kept(words_BT[..., None], index, rate)
    inner_BTF = jax.nn.relu(x_BTD @ w_DF + bias_F) / (1 - rate)
    return jnp.where(kept, inner_BTF, 0)

  def gradient(rate, dout_BTD, w_FD, inner_BTF):
    dinner_BTF = jnp.where(inner_BTF > 0, dout_BTD @ w_FD.T / (1 - rate), 0)
    sums_RF = dinner_BTF.reshape(-1, hopper.KERNEL_SIDE, len(w_FD)).sum(1)
    return dinner_BTF, sums_RF

  monkeypatch.setattr(lib, '_activated', activated)
  monkeypatch.setattr(lib, '_gradient', gradient)
  monkeypatch.setattr(
    lib, 'takes_kernels', lambda implementation, *_: implementation == 'auto'
  )


@pytest.mark.parametrize('mesh', checks.MESHES)
def test_around_the_kernels_all_is_the_same(mesh, monkeypatch):
  _plain(monkeypatch)
  results = functools.partial(_results, 0.25)
  operands = _operands((8, 128, 64, 128, 0.25), jnp.float32)
  checks.assert_the_same(results, operands, mesh)


@pytest.mark.parametrize(
  'change',
  [
    dict(implementation='xla'),
    dict(dtype=jnp.float32),
    dict(weights=jnp.float32),
    dict(T=127),
    dict(D=96),
    dict(F=192),
  ],
)
def test_what_kernels_cannot_do_is_left_to_xla(change, on_hopper):
  sizes = dict(implementation='auto', dtype=jnp.bfloat16, T=128, D=64, F=128)
  sizes |= dict(weights=jnp.bfloat16)

  def taken(implementation, dtype, weights, T, D, F):
    x_BTD = jax.ShapeDtypeStruct((1, T, D), dtype)
    w_DF = jax.ShapeDtypeStruct((D, F), weights)
    return lib.takes_kernels(implementation, x_BTD, w_DF)

  assert taken(**sizes)
  assert not taken(**sizes | change)


def _taken(rows):
  x_BTD = jax.ShapeDtypeStruct((rows, 128, 512), jnp.bfloat16)
  w_DF = jax.ShapeDtypeStruct((512, 2048), jnp.bfloat16)
  return lib.takes_kernels('auto', x_BTD, w_DF)


def test_a_few_rows_are_left_to_xla(monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  assert [_taken(rows) for rows in (1, 8, 64)] == [False, False, True]


@checks.needs_devices(2)
@checks.BY_PART
def test_what_counts_is_the_part_of_a_device(mesh, expected, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  assert checks.taken_by_two_devices(mesh, _taken, 64) == expected
