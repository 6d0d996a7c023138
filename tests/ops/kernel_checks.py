"""What is checked of every operator that has kernels for Hopper."""

import contextlib
import functools

import interpreted_tiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from txl_jax.config import MeshConfig
from txl_jax.ops import hopper
from txl_jax.parallel import mesh as mesh_lib

new_enough = pytest.mark.skipif(
  jax.__version_info__ < hopper.JAX_VERSION, reason='needs jax 0.11'
)
needs_hopper = pytest.mark.skipif(
  not hopper.on_hopper(), reason='needs a Hopper GPU'
)


def needs_devices(n):
  """Skips where there are fewer."""
  return pytest.mark.skipif(jax.device_count() < n, reason=f'needs {n} devices')


MESHES = [
  None,
  pytest.param(MeshConfig(data=2, fsdp=2), marks=needs_devices(4)),
]


@contextlib.contextmanager
def on_hopper(monkeypatch, operator, least):
  """As if on Hopper, where this least size of an operator's module is 1."""
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  monkeypatch.setattr(operator, least, 1)
  # What was traced elsewhere took no kernel.
  jax.clear_caches()
  yield
  jax.clear_caches()


def interpreted(monkeypatch, modules, kernels):
  """With what kernels are made of in these modules written out."""
  interpreted_tiles.install(monkeypatch, *modules)
  return interpreted_tiles.looking_for_races(*kernels)


def assert_as_close_as_xla(results, operands, names, *, slack, least=0.0):
  """Values and gradients are no further from float32's than those of XLA.

  Args:
    results: of an implementation and operands.
    operands: in bfloat16.
    names: of the results.
    slack: how many times the error of XLA there may be.
    least: a mean error that any may have.
  """
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), operands)
  exact = results('xla', *wide)
  ours, theirs = (results(name, *operands) for name in ('auto', 'xla'))
  for name, *found, expected in zip(names, ours, theirs, exact, strict=True):
    errors = [
      float(jnp.abs(x.astype(jnp.float32) - expected).sum()) for x in found
    ]
    assert errors[0] <= slack * errors[1] + least * expected.size, name


def kernels_for_an_h200(results, operands):
  """How many there are in the program of 'auto' for one."""
  text = text_for_an_h200(functools.partial(results, 'auto'), *operands)
  return text.count('custom_call @mosaic_gpu')


def text_for_an_h200(function, *operands):
  """The program for one, which need not be there."""
  from jax._src.mesh import AbstractDevice, use_abstract_mesh

  device = AbstractDevice('NVIDIA H200', None, 'gpu')
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
    traced = jax.jit(function).trace(*operands)
    return traced.lower(lowering_platforms=('cuda',)).as_text()


BY_PART = pytest.mark.parametrize(
  'mesh, expected',
  [
    (MeshConfig(data=2), [False, True, False]),
    (MeshConfig(tensor=2), [False, False, False]),
  ],
)


def taken_by_two_devices(mesh, taken, enough):
  """Of rows too few for two devices, enough, and not to be divided.

  Args:
    mesh: of them.
    taken: whether kernels take so many rows.
    enough: rows for one device.
  """
  with mesh_lib.sharded(mesh_lib.make_mesh(mesh, jax.devices()[:2])):
    return [taken(rows) for rows in (enough, 2 * enough, 2 * enough + 1)]


def assert_the_same(results, operands, mesh, tolerance=1e-4):
  """What 'auto' finds on a mesh is what XLA finds on one device."""
  expected = results('xla', *operands)
  found = jax.jit(results, static_argnums=0)
  if mesh is not None:
    with mesh_lib.sharded(mesh_lib.make_mesh(mesh, jax.devices()[:4])):
      compiled = found.lower('auto', *operands).compile()
    found = compiled(*operands)
  else:
    found = found('auto', *operands)
  for ours, theirs in zip(found, expected, strict=True):
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    np.testing.assert_allclose(
      ours, theirs, rtol=tolerance / 10, atol=tolerance
    )
