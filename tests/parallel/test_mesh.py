"""The mesh, and the real model on meshes of every kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

import txl_jax
from txl_jax.config import MeshConfig, ModelConfig
from txl_jax.errors import InputError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import local_rows, place
from txl_jax.parallel.partition import P, param_shardings

MODEL = ModelConfig(
  vocab_size=40,
  n_layers=2,
  n_heads=4,
  d_model=16,
  d_head=4,
  d_ff=32,
  memory_length=4,
  dropout=0.2,
)
B, T = 8, 6


def _mesh(*sizes: int) -> Mesh:
  return mesh_lib.make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
  'config, shape',
  [
    (MeshConfig(), (8, 1, 1)),
    (MeshConfig(fsdp=2, tensor=2), (2, 2, 2)),
    (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
    (MeshConfig(data=1, fsdp=2, tensor=4), (1, 2, 4)),
  ],
)
def test_one_axis_takes_the_devices_that_are_left(config, shape):
  mesh = mesh_lib.make_mesh(config)
  assert mesh.devices.shape == shape
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  'sizes, words',
  [
    (dict(tensor=3), 'config.mesh.tensor is 1 x 3, expected a divisor of'),
    (dict(data=2, fsdp=2), 'is 2 x 2 x 1, expected exactly the number of'),
    (dict(fsdp=0), r'config\.mesh\.fsdp must be at least 1, or -1 .* found 0'),
    (dict(tensor=-1), r'config\.mesh\.tensor must be .* data is -1, found -1'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
  with pytest.raises(InputError, match=words):
    mesh_lib.make_mesh(MeshConfig(**sizes))


@dataclasses.dataclass(frozen=True)
class _Device:
  """As a GPU or TPU shows itself to those who lay out meshes."""

  id: int
  slice_index: int
  platform = 'gpu'
  device_kind = 'NVIDIA H200'

  @property
  def process_index(self) -> int:
    return self.slice_index


@pytest.mark.parametrize(
  'config, ids',
  [
    (MeshConfig(tensor=4), [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]),
    (MeshConfig(1, 4, 2), [[[0, 1], [2, 3], [4, 5], [6, 7]]]),
    (MeshConfig(1, 1, 8), [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
  ],
)
def test_outer_axes_go_from_slice_to_slice(config, ids):
  # Handed over in turns, as processes may start in any order.
  devices = [_Device(4 * s + i, s) for i in range(4) for s in range(2)]
  mesh = mesh_lib.make_mesh(config, devices)
  found = np.vectorize(lambda device: device.id)(mesh.devices)
  assert found.tolist() == ids


def test_slices_of_different_size_are_refused():
  devices = [_Device(i, i // 5) for i in range(8)]
  with pytest.raises(InputError, match='equally many devices, found 5, 3'):
    mesh_lib.make_mesh(MeshConfig(), devices)


def test_rows_divide_over_data_and_fsdp_together():
  mesh = _mesh(2, 2, 2)
  mesh_lib.check_rows(mesh, 12, 'config.train.batch_size')
  message = 'config.train.batch_size is 6, expected a multiple of the 4 groups'
  with pytest.raises(InputError, match=message):
    mesh_lib.check_rows(mesh, 6, 'config.train.batch_size')


def test_rows_are_placed():
  mesh = _mesh(2, 2, 2)
  assert local_rows(mesh, B) == slice(0, B)
  tokens_SBT = np.arange(3 * B * T).reshape(3, B, T)
  placed = place(mesh, {'tokens': tokens_SBT, 'valid': np.arange(B)}, B)
  assert placed['tokens'].sharding.spec == P(None, ('data', 'fsdp'))
  assert placed['tokens'].addressable_shards[0].data.shape == (3, 2, T)
  np.testing.assert_array_equal(placed['tokens'], tokens_SBT)
  np.testing.assert_array_equal(placed['valid'], np.arange(B))


def _loss(params, memory, tokens_BT, targets_BT):
  nll_BT, memory = txl_jax.score(
    MODEL,
    params,
    tokens_BT,
    targets_BT,
    memory,
    dropout_key=jax.random.key(3),
  )
  return nll_BT.mean(), memory


_gradient = jax.value_and_grad(_loss, has_aux=True)


@functools.cache
def _arguments() -> tuple:
  random = np.random.default_rng(0)
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: txl_jax.init_params(MODEL, key))
  params = jax.tree.map(
    lambda leaf: np.float32(0.3 * random.normal(size=leaf.shape)), shapes
  )
  memory = jax.device_get(txl_jax.init_memory(MODEL, B))
  hidden_NBMD = np.float32(random.normal(size=memory.hidden_NBMD.shape))
  memory = memory.replace(
    hidden_NBMD=hidden_NBMD, valid_B=np.int32([4, 0, 1, 2, 3, 4, 4, 4])
  )
  return params, memory, *random.integers(0, 40, (2, B, T))


@functools.cache
def _alone() -> tuple:
  return jax.device_get(jax.jit(_gradient)(*_arguments()))


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_the_model_gives_the_same_gradients(sizes):
  mesh = _mesh(*sizes)
  params, memory, *ids = _arguments()
  of_params = param_shardings(mesh, params)
  of_memory = mesh_lib.by_rows(mesh, memory)
  ids_sharding = NamedSharding(mesh, P(mesh_lib.ROWS))
  step = jax.jit(
    _gradient,
    in_shardings=(of_params, of_memory, ids_sharding, ids_sharding),
    out_shardings=((mesh_lib.replicated(mesh), of_memory), of_params),
  )
  with mesh_lib.sharded(mesh):
    found = step(params, memory, *ids)
  (_, new_memory), gradients = found
  assert jax.tree.map(lambda leaf: leaf.sharding, gradients) == of_params
  rows = 8 // sizes[2]
  assert new_memory.valid_B.addressable_shards[0].data.size == B // rows
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(_alone()), jax.tree.leaves(found)
  ):
    scale = np.abs(a).max()
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_parameters_take_less_of_each_device():
  params = _arguments()[0]
  mesh = _mesh(1, 4, 2)
  placed = jax.device_put(params, param_shardings(mesh, params))
  here = sum(
    leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed)
  )
  assert here < sum(leaf.size for leaf in jax.tree.leaves(params)) / 6


def test_the_same_function_serves_several_meshes():
  """What has been traced for one mesh is not used for another, or for none."""
  from txl_jax.ops.shards import constrain

  inner = jax.jit(lambda x: constrain(2 * x, 'rows', 'heads'))
  found = []
  for sizes in ((8, 1, 1), (1, 2, 4), None):
    outer = jax.jit(lambda x: inner(x))
    if sizes is None:
      found.append(outer(jnp.ones((8, 8))).sharding.num_devices)
      continue
    with mesh_lib.sharded(_mesh(*sizes)):
      shard = outer(jnp.ones((8, 8))).addressable_shards[0].data
      found.append(shard.shape)
  assert found == [(1, 8), (4, 2), 1]
