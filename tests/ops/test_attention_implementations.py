"""Every way to compute relative attention against the reference."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model.memory import visibility
from txl_jax.ops import xla_attention
from txl_jax.ops.dropout import weight_mask
from txl_jax.ops.relative_attention import IMPLEMENTATIONS, relative_attention

Auto = AxisType.Auto
H, D = 2, 6
SEED = 123
LEAVES = ('q', 'k', 'v', 'table', 'w_r', 'u', 'v_bias')
# The kernels have tests of their own.
each_implementation = pytest.mark.parametrize(
  'implementation', ['reference', 'xla']
)


def _inputs(B: int, T: int, M: int, C: int) -> dict[str, jax.Array]:
  """Random arguments; every query sees all of the memory."""
  random, K = np.random.default_rng(0), M + T
  shapes = {
    'q': (B, T, H, C),
    'k': (B, K, H, C),
    'v': (B, K, H, C),
    'table': (K, D),
    'w_r': (D, H, C),
    'u': (H, C),
    'v_bias': (H, C),
  }
  arrays = {
    name: jnp.asarray(random.normal(size=shape), jnp.float32)
    for name, shape in shapes.items()
  }
  arrays['first'] = jnp.zeros((B, T), jnp.int32)
  return arrays


def _masks(T: int, M: int) -> dict[str, jax.Array]:
  """Ways to see less than everything, each for two rows."""
  full = functools.partial(visibility, memory_length=M, segment_length=T)
  valid_B, starts_BT = jnp.array([M, M]), np.zeros((2, T), bool)
  starts_BT[0, T // 2] = starts_BT[1, T // 3] = True
  return {
    'span': full(valid_B, None, attention_span=M // 2 + 1),
    'filling': full(jnp.array([M // 3, 0]), None, attention_span=None),
    'documents': full(valid_B, starts_BT, attention_span=None),
  }


def _measure(arrays: dict, implementation: str, rate: float = 0.0) -> dict:
  """The output, and the gradient of a weighted sum of it by each argument."""
  *leaves, first_BT = arrays.values()
  weight_BTHC = np.random.default_rng(1).normal(size=arrays['q'].shape)

  def loss(*leaves):
    out_BTHC = relative_attention(
      *leaves,
      first_BT,
      dropout_rate=rate,
      dropout_seed=jnp.uint32(SEED) if rate else None,
      implementation=implementation,
    )
    return (out_BTHC * weight_BTHC.astype(np.float32)).sum(), out_BTHC

  gradient = jax.grad(loss, argnums=tuple(range(len(leaves))), has_aux=True)
  with jax.default_matmul_precision('highest'):
    gradients, out_BTHC = jax.jit(gradient)(*leaves)
  return {'out': out_BTHC, **dict(zip(LEAVES, gradients))}


def _error(found: jax.Array, expected: jax.Array) -> float:
  """The norm of the difference, relative to that of what is expected."""
  found, expected = np.asarray(found, float), np.asarray(expected, float)
  # A softmax over a single key has no gradient.
  size = max(np.linalg.norm(expected), 1)
  return np.linalg.norm(found - expected) / size


def _assert_equal_reference(arrays: dict, rate: float = 0.0) -> None:
  expected = _measure(arrays, 'reference', rate)
  for name, found in _measure(arrays, 'xla', rate).items():
    assert _error(found, expected[name]) < 5e-6, name


@pytest.mark.parametrize(
  ('B', 'T', 'M', 'C', 'rate'),
  [
    (2, 1, 0, 41, 0.0),
    (2, 1, 5, 64, 0.3),
    (2, 8, 0, 128, 0.3),
    (2, 8, 40, 41, 0.0),
    (1, 150, 150, 41, 0.3),
    (1, 150, 750, 64, 0.0),
    (1, 192, 0, 64, 0.3),
    (1, 192, 192, 128, 0.0),
  ],
)
def test_values_and_gradients(B, T, M, C, rate):
  _assert_equal_reference(_inputs(B, T, M, C), rate)


@pytest.mark.parametrize('mask', ['span', 'filling', 'documents'])
@pytest.mark.parametrize('T', [8, 21])
def test_whatever_is_visible(mask, T):
  arrays = _inputs(2, T, 24, 5)
  arrays['first'] = _masks(T, 24)[mask]
  _assert_equal_reference(arrays, rate=0.2)


def test_blocks_of_queries_change_nothing(monkeypatch):
  arrays = _inputs(2, 21, 24, 5)
  arrays['first'] = _masks(21, 24)['documents']
  monkeypatch.setattr(xla_attention, '_BLOCK', 8)
  _assert_equal_reference(arrays, rate=0.2)


def test_a_mesh_changes_nothing():
  arrays = _inputs(4, 8, 8, 4)
  mesh = jax.make_mesh((4, 2), ('rows', 'heads'), axis_types=(Auto, Auto))
  by_row = PartitionSpec('rows', None, 'heads')
  specs = dict(q=by_row, k=by_row, v=by_row, first=PartitionSpec('rows'))
  divided = {
    name: jax.device_put(
      x, NamedSharding(mesh, specs.get(name, PartitionSpec()))
    )
    for name, x in arrays.items()
  }
  expected = _measure(arrays, 'reference', 0.3)
  for name, found in _measure(divided, 'xla', 0.3).items():
    assert _error(found, expected[name]) < 5e-6, name


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_bfloat16_is_close_to_float32(rate):
  arrays = _inputs(2, 48, 48, 16)
  narrow = {
    name: x if name == 'first' else x.astype(jnp.bfloat16)
    for name, x in arrays.items()
  }
  rounded = {
    name: x if name == 'first' else x.astype(jnp.float32)
    for name, x in narrow.items()
  }
  expected = _measure(rounded, 'reference', rate)
  for name, found in _measure(narrow, 'xla', rate).items():
    assert found.dtype == jnp.bfloat16
    assert _error(found, expected[name]) < 0.03, name


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_one_array_of_probabilities_is_kept_and_it_is_narrow(rate):
  B, T, M, C = 2, 16, 16, 8
  arrays = {
    name: x if name == 'first' else x.astype(jnp.bfloat16)
    for name, x in _inputs(B, T, M, C).items()
  }
  *leaves, first_BT = arrays.values()

  def forward(leaves):
    return jax.vjp(
      lambda *leaves: relative_attention(
        *leaves,
        first_BT,
        dropout_rate=rate,
        dropout_seed=jnp.uint32(SEED),
        implementation='xla',
      ),
      *leaves,
    )

  kept = jax.tree.leaves(jax.eval_shape(forward, leaves))
  large = [x for x in kept if x.size >= B * H * T * (M + T)]
  assert [x.dtype for x in large] == [jnp.bfloat16]


@each_implementation
def test_dropout_is_that_of_the_mask(implementation):
  B, T, M, rate = 2, 24, 40, 0.3
  arrays = _inputs(B, T, M, 3)
  # Values that are unit vectors make the output the probabilities themselves.
  unit_KHK = jnp.broadcast_to(jnp.eye(M + T)[:, None], (M + T, H, M + T))
  arrays['v'] = jnp.broadcast_to(unit_KHK, (B, *unit_KHK.shape))

  @functools.partial(jax.jit, static_argnums=0)
  def attend(rate):
    return relative_attention(
      *arrays.values(),
      dropout_rate=rate,
      dropout_seed=jnp.uint32(SEED),
      implementation=implementation,
    )

  whole_BTHK = np.asarray(attend(0.0))
  np.testing.assert_allclose(whole_BTHK.sum(-1), 1, rtol=1e-5)
  keep_BHTK = weight_mask(jnp.uint32(SEED), (B, H, T, M + T), rate)
  expected_BTHK = whole_BTHK * keep_BHTK.swapaxes(1, 2) / (1 - rate)
  np.testing.assert_allclose(
    attend(rate), expected_BTHK, rtol=1e-5, atol=2.0**-60
  )


@each_implementation
def test_a_query_that_sees_nothing_gets_zeros(implementation):
  T, M = 5, 7
  arrays = _inputs(2, T, M, 3)
  arrays['first'] = arrays['first'].at[0, 2].set(M + T)
  found = _measure(arrays, implementation)
  assert (found['out'][0, 2] == 0).all()
  assert (found['q'][0, 2] == 0).all()
  assert all(np.isfinite(x).all() for x in found.values())


def test_the_implementations_are_those_of_the_configuration():
  field = typing.get_type_hints(ModelConfig)['attention_implementation']
  assert typing.get_args(field) == ('auto', *IMPLEMENTATIONS, 'splash')
  arrays = _inputs(1, 1, 0, 1)
  with pytest.raises(InputError, match="one of 'auto', .*, found 'fast'"):
    relative_attention(*arrays.values(), implementation='fast')
