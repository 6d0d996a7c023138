"""What XLA cannot divide is computed by each group of rows for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from txl_jax.config import MeshConfig
from txl_jax.ops import shards
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.partition import P

B, T, E, V = 8, 3, 4, 10


def _arguments(dtype) -> tuple:
  random = np.random.default_rng(0)
  table_VE = jnp.asarray(random.normal(size=(V, E)), dtype)
  bias_V = jnp.asarray(random.normal(size=V), dtype)
  hidden_BTE = jnp.asarray(random.normal(size=(B, T, E)), dtype)
  targets_BT = jnp.asarray(random.integers(0, V, (B, T)))
  return (table_VE, bias_V), hidden_BTE, targets_BT


def _sorting_loss(weights, hidden_BTE, targets_BT) -> jax.Array:
  """Losses in the order of a sort of all tokens, after loops of both kinds."""
  table_VE, bias_V = weights
  target_B = targets_BT.reshape(-1)
  order_B = jnp.argsort(target_B)
  hidden_BE = hidden_BTE.reshape(-1, E)[order_B]
  counted = jax.lax.while_loop(
    lambda counts: counts[0] < target_B.max(),
    lambda counts: (counts[0] + 1, counts[1] + 1),
    (0, 0),
  )[1]
  # The state begins as what all groups share and becomes a group's own.
  total_E, _ = jax.lax.scan(
    lambda total_E, x_E: (total_E + x_E, None), jnp.zeros(E), hidden_BE
  )
  logits_BV = hidden_BE @ table_VE.T + bias_V
  logits_BV = shards.constrain(logits_BV, None, 'vocabulary')
  logp_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
  nll_B = -jnp.take_along_axis(logp_BV, target_B[order_B][:, None], 1)[:, 0]
  nll_B = jnp.zeros_like(nll_B).at[order_B].set(nll_B)
  return nll_B.reshape(targets_BT.shape) + 0 * (counted + total_E.sum())


def _loss(weights, hidden_BTE, targets_BT) -> jax.Array:
  each = shards.per_row_shard(_sorting_loss, (None, 0, 0), 0)
  return jnp.square(each(weights, hidden_BTE, targets_BT)).sum()


_gradients = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)))


@pytest.fixture(scope='module')
def mesh() -> Mesh:
  """Four groups of rows, each on two devices."""
  return mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize(
  'dtype, tolerance, table',
  [
    (jnp.float32, 1e-5, P()),
    (jnp.float32, 1e-5, P('tensor', 'fsdp')),
    (jnp.bfloat16, 3e-2, P('tensor')),
  ],
)
def test_groups_of_rows_give_the_same_gradients(mesh, dtype, tolerance, table):
  arguments = _arguments(dtype)
  alone = _gradients(*arguments)
  weights, *rows = arguments
  table_VE = jax.device_put(weights[0], NamedSharding(mesh, table))
  rows = [
    jax.device_put(x, NamedSharding(mesh, P(mesh_lib.ROWS))) for x in rows
  ]
  with mesh_lib.sharded(mesh):
    found = _gradients((table_VE, weights[1]), *rows)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
    a, b = np.float32(a), np.float32(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def _sort_sizes(function, *arguments) -> list[int]:
  """How many elements each sort of the compiled program has on a device."""
  text = jax.jit(function).lower(*arguments).compile().as_text()
  found = [line.split('[')[1] for line in text.splitlines() if ' sort(' in line]
  return [int(size.split(']')[0].split(',')[0]) for size in found]


def test_each_group_sorts_its_own_rows(mesh):
  targets_BT = _arguments(jnp.float32)[2]
  rows = NamedSharding(mesh, P(mesh_lib.ROWS))
  targets_BT = jax.device_put(targets_BT, rows)

  def order(targets_BT):
    rank = lambda x: jnp.argsort(x.reshape(-1)).reshape(x.shape)  # noqa: E731
    return shards.per_row_shard(rank, (0,), 0)(targets_BT)

  assert _sort_sizes(order, targets_BT) == [B * T]
  with mesh_lib.sharded(mesh):
    assert _sort_sizes(order, targets_BT) == [B * T // 4]


def test_what_does_not_divide_stays_whole(mesh):
  """A single row, as when parameters are drawn, and an odd vocabulary."""
  weights, hidden_BTE, targets_BT = _arguments(jnp.float32)
  one = (weights, hidden_BTE[:1], targets_BT[:1])
  alone = _gradients(*one)
  with mesh_lib.sharded(mesh):
    found = _gradients(*one)
    odd = jax.jit(lambda x: shards.constrain(x, 'rows', 'vocabulary'))(
      jnp.ones((8, 9))
    )
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert odd.sharding.spec == P(('data', 'fsdp'))


def test_nothing_is_divided_outside():
  x = jnp.ones((8, 8))
  assert shards.constrain(x, 'rows', None) is x
  assert shards.per_row_shard(_loss, (None, 0, 0), 0) is _loss


def _per_head(q_BTHC, u_HC, first_BT) -> jax.Array:
  """Mixes positions and widths, but neither rows nor heads."""
  order_BTHC = jnp.argsort(q_BTHC + u_HC, axis=1)
  mixed_BTHC = jnp.take_along_axis(q_BTHC, order_BTHC, axis=1) + u_HC
  seen_BT = first_BT < 2
  return jnp.cumsum(mixed_BTHC, axis=3) * seen_BT[..., None, None]


@pytest.mark.parametrize('n_heads', [4, 3])
def test_rows_and_heads_are_divided_together(mesh, n_heads):
  random = np.random.default_rng(1)
  q_BTHC = jnp.asarray(random.normal(size=(B, T, n_heads, 5)), jnp.float32)
  u_HC = jnp.asarray(random.normal(size=(n_heads, 5)), jnp.float32)
  first_BT = jnp.asarray(random.integers(0, 3, (B, T)))
  seen = []

  def per_head(*parts):
    seen.append(parts[0].shape)
    return _per_head(*parts)

  def loss(q_BTHC, u_HC):
    heads = ('rows', None, 'heads')
    each = shards.per_shard(per_head, (heads, ('heads',), ('rows',)), heads)
    return jnp.square(each(q_BTHC, u_HC, first_BT)).sum()

  gradients = jax.value_and_grad(loss, argnums=(0, 1))
  alone = jax.jit(gradients)(q_BTHC, u_HC)
  with mesh_lib.sharded(mesh):
    found = jax.jit(gradients)(q_BTHC, u_HC)
  assert seen[-1] == (2, T, 2 if n_heads == 4 else 3, 5)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
