"""The feed-forward network and its kernels, interpreted and on Hopper."""

import functools

import interpreted_tiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from txl_jax.config import MeshConfig
from txl_jax.ops import dropout, hopper
from txl_jax.ops import feed_forward as lib
from txl_jax.parallel import mesh as mesh_lib

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
new_enough = pytest.mark.skipif(
  jax.__version_info__ < hopper.JAX_VERSION, reason='needs jax 0.11'
)


def _operands(case, dtype=jnp.bfloat16):
  B, T, D, F, _ = case
  shapes = (B, T, D), (D, F), (F,), (F, D), (B, T, D)
  keys = jax.random.split(jax.random.key(0), len(shapes))
  sizes = (1, D**-0.5, 0.1, F**-0.5, 1)
  return [
    (size * jax.random.normal(key, shape)).astype(dtype)
    for key, shape, size in zip(keys, shapes, sizes)
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
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
  operands = _operands(case)
  wide = [x.astype(jnp.float32) for x in operands]
  exact = _results(case[-1], 'xla', *wide)
  ours = _results(case[-1], 'auto', *operands)
  theirs = _results(case[-1], 'xla', *operands)
  for name, *found, expected in zip(NAMES, ours, theirs, exact):
    errors = [
      float(jnp.abs(x.astype(jnp.float32) - expected).mean()) for x in found
    ]
    assert errors[0] <= slack * errors[1], name


@pytest.fixture
def on_hopper(monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  monkeypatch.setattr(lib, '_LEAST_BLOCKS', 1)
  # What was traced elsewhere took no kernel.
  jax.clear_caches()
  yield
  jax.clear_caches()


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_dropout, mosaic_products, mosaic_tiles
  from txl_jax.ops import mosaic_feed_forward as kernels

  interpreted_tiles.install(
    monkeypatch, mosaic_dropout, mosaic_products, mosaic_tiles
  )
  with interpreted_tiles.looking_for_races(kernels._forward, kernels._backward):
    yield


@new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_interpreted(case, interpreted, capfd):
  # How a CPU rounds products of bfloat16 depends on the CPU.
  _assert_as_close_as_xla(case, slack=1.1)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@pytest.mark.skipif(not hopper.on_hopper(), reason='needs a Hopper GPU')
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  with jax.default_matmul_precision('highest'):
    _assert_as_close_as_xla(case, slack=1.0)


@new_enough
def test_it_compiles_for_an_h200(on_hopper):
  from jax._src.mesh import AbstractDevice, use_abstract_mesh

  operands = _operands(CASES['dropout'])
  device = AbstractDevice('NVIDIA H200', None, 'gpu')
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
    lowered = _results.trace(0.25, 'auto', *operands).lower(
      lowering_platforms=('cuda',)
    )
  assert lowered.as_text().count('custom_call @mosaic_gpu') == 2


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


@pytest.mark.parametrize('mesh', [None, MeshConfig(data=2, fsdp=2)])
def test_around_the_kernels_all_is_the_same(mesh, monkeypatch):
  _plain(monkeypatch)
  case = (8, 128, 64, 128, 0.25)
  operands = _operands(case, jnp.float32)
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


@pytest.mark.parametrize(
  'mesh, expected',
  [
    (MeshConfig(data=2), [False, True, False]),
    (MeshConfig(tensor=2), [False, False, False]),
  ],
)
def test_what_counts_is_the_part_of_a_device(mesh, expected, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  with mesh_lib.sharded(mesh_lib.make_mesh(mesh, jax.devices()[:2])):
    # Too few for two, enough, and not to be divided.
    assert [_taken(rows) for rows in (64, 128, 129)] == expected
