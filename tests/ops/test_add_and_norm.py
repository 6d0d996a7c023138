"""The end of a sublayer and its kernels, interpreted and on Hopper."""

import functools

import interpreted_tiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh

from txl_jax.config import MeshConfig
from txl_jax.ops import add_and_norm as lib
from txl_jax.ops import dropout, hopper
from txl_jax.ops.layer_norm import layer_norm
from txl_jax.parallel import mesh as mesh_lib

# B, T, D, dropout rate, uses of the result
CASES = {
  'dropout': (2, 18, 256, 0.25, 2),
  'a wide row': (1, 44, 1024, 0.1, 1),
  'without dropout': (3, 8, 512, 0.0, 2),
}
LARGE = {
  'enwik8, 12 layers': (22, 512, 512, 0.1, 2),
  'enwik8, 24 layers': (16, 768, 1024, 0.15, 1),
}
EPSILON = 1e-5
NAMES = ('out', 'x', 'branch', 'bias', 'scale', 'shift')
new_enough = pytest.mark.skipif(
  jax.__version_info__ < hopper.JAX_VERSION, reason='needs jax 0.11'
)


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


@functools.partial(jax.jit, static_argnums=(0, 1))
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
  operands, gradients = _operands(case)
  rate = case[3]
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (operands, gradients))
  exact = _results(rate, 'xla', *wide)
  ours = _results(rate, 'auto', operands, gradients)
  theirs = _results(rate, 'xla', operands, gradients)
  for name, *found, expected in zip(NAMES, ours, theirs, exact, strict=True):
    errors = [
      float(jnp.abs(x.astype(jnp.float32) - expected).mean()) for x in found
    ]
    # XLA may not round the sum that is normalised, which the kernels keep.
    assert errors[0] <= 1.5 * errors[1] + 1e-5, name


@pytest.fixture
def on_hopper(monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  monkeypatch.setattr(lib, '_LEAST_ROWS', 1)
  # What was traced elsewhere took no kernel.
  jax.clear_caches()
  yield
  jax.clear_caches()


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_layer_norm as kernels
  from txl_jax.ops import mosaic_tiles

  interpreted_tiles.install(monkeypatch, mosaic_tiles)
  # Without what is said of registers; and steps, where there are few rows.
  monkeypatch.setattr(kernels, '_read', lambda source, *_: source[...])
  monkeypatch.setattr(kernels, '_laid', lambda x: x)
  monkeypatch.setattr(
    *(kernels, '_columns'),
    lambda like: lax.broadcasted_iota(jnp.uint32, like.shape, 1),
  )
  monkeypatch.setattr(kernels, '_BLOCKS', 2)
  caches = kernels._forward, kernels._backward
  with interpreted_tiles.looking_for_races(*caches):
    yield


@new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_interpreted(case, interpreted, capfd):
  _assert_as_close_as_xla(case)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@pytest.mark.skipif(not hopper.on_hopper(), reason='needs a Hopper GPU')
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  _assert_as_close_as_xla(case)


@new_enough
def test_it_compiles_for_an_h200(on_hopper):
  from jax._src.mesh import AbstractDevice, use_abstract_mesh

  device = AbstractDevice('NVIDIA H200', None, 'gpu')
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
    lowered = _results.trace(0.25, 'auto', *_operands(CASES['dropout'])).lower(
      lowering_platforms=('cuda',)
    )
  assert lowered.as_text().count('custom_call @mosaic_gpu') == 2


def _plain(monkeypatch):
  """What the kernels do, by XLA."""

  def normed(static, x, branch, bias, scale, shift, words_BT):
    branch = _dropped(static, branch + bias, words_BT)
    return layer_norm(x + branch, scale, shift, static.epsilon), x + branch

  def gradients(static, gradients, total, scale, words_BT):
    def back(x):
      return jax.vjp(lambda *y: layer_norm(*y, static.epsilon), *x)[1]

    gradient = sum(gradients)
    dx, dscale, dshift = back((total, scale, scale))(gradient)
    dbranch = _dropped(static, dx, words_BT)
    sums = dscale, dshift, dbranch.sum((0, 1))
    return dx, dbranch, jnp.stack(sums)[None]

  monkeypatch.setattr(lib, '_normed', normed)
  monkeypatch.setattr(lib, '_gradients', gradients)
  monkeypatch.setattr(
    lib, 'takes_kernels', lambda implementation, *_: implementation == 'auto'
  )


def _dropped(static, x_BTD, words_BT):
  index = jnp.arange(x_BTD.shape[-1], dtype=jnp.uint32)
  kept = dropout.kept(words_BT[..., None], index, static.rate)
  return jnp.where(kept, x_BTD / (1 - static.rate), 0)


@pytest.mark.parametrize('mesh', [None, MeshConfig(data=2, fsdp=2)])
def test_around_the_kernels_all_is_the_same(mesh, monkeypatch):
  _plain(monkeypatch)
  operands = _operands((8, 16, 64, 0.25, 2), jnp.float32)
  expected = _results(0.25, 'xla', *operands)
  if mesh is None:
    found = _results(0.25, 'auto', *operands)
  else:
    with mesh_lib.sharded(mesh_lib.make_mesh(mesh, jax.devices()[:4])):
      compiled = _results.lower(0.25, 'auto', *operands).compile()
    found = compiled(*operands)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  'change',
  [
    dict(implementation='xla'),
    dict(dtype=jnp.float32),
    dict(branch=jnp.float32),
    dict(T=513),
    dict(D=384),
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


@pytest.mark.parametrize(
  'mesh, expected',
  [
    (MeshConfig(data=2), [False, True, False]),
    (MeshConfig(tensor=2), [False, False, False]),
  ],
)
def test_what_counts_is_the_part_of_a_device(mesh, expected, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)

  def taken(rows):
    x_BTD = jax.ShapeDtypeStruct((rows, 512, 512), jnp.bfloat16)
    return lib.takes_kernels('auto', x_BTD, x_BTD)

  with mesh_lib.sharded(mesh_lib.make_mesh(mesh, jax.devices()[:2])):
    # Too few for two, enough, and not to be divided.
    assert [taken(rows) for rows in (8, 16, 17)] == expected
