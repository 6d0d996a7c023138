"""The end of a sublayer and its kernels, interpreted and on Hopper."""

import functools

import jax
import jax.numpy as jnp
import kernel_checks as checks
import pytest
from jax import lax

from txl_jax.ops import add_and_norm as lib
from txl_jax.ops import dropout, hopper
from txl_jax.ops.layer_norm import layer_norm

# B, T, D, dropout rate, uses of the result
CASES = {
  'dropout': (2, 30, 384, 0.25, 2),
  'a wide row': (1, 44, 1024, 0.1, 1),
  'without dropout': (3, 8, 512, 0.0, 2),
}
LARGE = {
  'enwik8, 12 layers': (22, 512, 512, 0.1, 2),
  'enwik8, 24 layers': (16, 768, 1024, 0.15, 1),
}
EPSILON = 1e-5
NAMES = ('out', 'x', 'branch', 'bias', 'scale', 'shift')


def _operands(case, dtype=jnp.bfloat16):
  """Those of the operator, and the gradients of all uses of its result."""
  B, T, D, _, n_uses = case
  keys = iter(jax.random.split(jax.random.key(0), 5 + n_uses))

  def normal(*shape):
    return jax.random.normal(next(keys), shape)

  rows = [normal(B, T, D).astype(dtype) for _ in range(2 + n_uses)]
  bias_D = (0.1 * normal(D)).astype(dtype)
  weights = bias_D, 1 + 0.1 * normal(D), 0.1 * normal(D)
  return (*rows[:2], *weights), tuple(rows[2:])


def _results(rate, implementation, operands, gradients):
  """The output, and the gradients of all operands."""

  def run(*operands):
    return lib.add_and_norm(
      *(*operands, jnp.uint32(5), rate),
      epsilon=EPSILON,
      n_features=operands[0].shape[-1],
      n_uses=len(gradients),
      implementation=implementation,
    )

  out, back = jax.vjp(run, *operands)
  return out[0], *back(gradients)


def _assert_as_close_as_xla(case):
  results = functools.partial(jax.jit(_results, static_argnums=(0, 1)), case[3])
  # XLA may not round the sum that is normalised, which the kernels keep.
  checks.assert_as_close_as_xla(
    *(results, _operands(case), NAMES), slack=1.5, least=1e-5
  )


@pytest.fixture
def on_hopper(monkeypatch):
  with checks.on_hopper(monkeypatch, lib, '_LEAST_ROWS'):
    yield


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_layer_norm as kernels
  from txl_jax.ops import mosaic_rows, mosaic_tiles

  # Without what is said of registers.
  monkeypatch.setattr(mosaic_rows, 'read', lambda source, *_: source[...])
  monkeypatch.setattr(mosaic_rows, 'laid', lambda x: x)
  monkeypatch.setattr(
    *(mosaic_rows, 'columns'),
    lambda like: lax.broadcasted_iota(jnp.uint32, like.shape, 1),
  )
  # There are few rows: so each block has several steps.
  monkeypatch.setattr(kernels, 'MULTIPROCESSORS', 1)
  both = kernels._forward, kernels._backward
  with checks.interpreted(monkeypatch, [mosaic_tiles], both):
    yield


@checks.new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_interpreted(case, interpreted, capfd):
  _assert_as_close_as_xla(case)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@checks.needs_hopper
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  _assert_as_close_as_xla(case)


@checks.new_enough
def test_it_compiles_for_an_h200(on_hopper):
  results = functools.partial(_results, 0.25)
  operands = _operands(CASES['dropout'])
  assert checks.kernels_for_an_h200(results, operands) == 2


def _plain(monkeypatch):
  """What the kernels do, by XLA."""

  def normed(static, x, branch, bias, scale, shift, words_BT):
    branch = _dropped(static, branch + bias, words_BT)
    return layer_norm(x + branch, scale, shift, static.epsilon), x + branch

  def gradients(static, gradients, total, scale, words_BT):
    def norm(*operands):
      return layer_norm(*operands, static.epsilon)

    back = jax.vjp(norm, total, scale, scale)[1]
    dx, dscale, dshift = back(sum(gradients))
    dbranch = _dropped(static, dx, words_BT)
    sums = dscale, dshift, dbranch.sum((0, 1))
    return dx, dbranch, jnp.stack(sums)[None]

  monkeypatch.setattr(lib, '_normed', normed)
  monkeypatch.setattr(lib, '_gradients', gradients)
  monkeypatch.setattr(lib, 'takes_kernels', lambda name, *_: name == 'auto')


def _dropped(static, x_BTD, words_BT):
  index = jnp.arange(x_BTD.shape[-1], dtype=jnp.uint32)
  kept = dropout.kept(words_BT[..., None], index, static.rate)
  return jnp.where(kept, x_BTD / (1 - static.rate), 0)


@pytest.mark.parametrize('mesh', checks.MESHES)
def test_around_the_kernels_all_is_the_same(mesh, monkeypatch):
  _plain(monkeypatch)
  results = functools.partial(_results, 0.25)
  operands = _operands((8, 16, 64, 0.25, 2), jnp.float32)
  checks.assert_the_same(results, operands, mesh)


@pytest.mark.parametrize(
  'change',
  [
    dict(implementation='xla'),
    dict(dtype=jnp.float32),
    dict(branch=jnp.float32),
    dict(T=513),
    dict(D=448),
    dict(D=1152),
    dict(B=4),
  ],
)
def test_what_kernels_cannot_do_is_left_to_xla(change, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  sizes = dict(implementation='auto', dtype=jnp.bfloat16, B=9, T=512, D=512)
  sizes |= dict(branch=jnp.bfloat16)

  def taken(implementation, dtype, branch, B, T, D):
    x_BTD, branch_BTD = (
      jax.ShapeDtypeStruct((B, T, D), kind) for kind in (dtype, branch)
    )
    return lib.takes_kernels(implementation, x_BTD, branch_BTD)

  assert taken(**sizes)
  assert not taken(**sizes | change)


@checks.needs_devices(2)
@checks.BY_PART
def test_what_counts_is_the_part_of_a_device(mesh, expected, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)

  def taken(rows):
    x_BTD = jax.ShapeDtypeStruct((rows, 512, 512), jnp.bfloat16)
    return lib.takes_kernels('auto', x_BTD, x_BTD)

  assert checks.taken_by_two_devices(mesh, taken, 8) == expected
