"""The relative attention operator, however computed, against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.ops import reference_attention, xla_attention
from txl_jax.ops import relative_attention as ops

B, H, C, D = 2, 2, 3, 4
SIZES = [(1, 0), (4, 0), (1, 5), (4, 8), (5, 7), (6, 3)]  # (T, M)
each_implementation = pytest.mark.parametrize(
  'implementation', ['reference', 'xla']
)
DIFFERENTIABLE = ('q', 'k', 'v', 'table', 'w_r', 'u', 'v_bias')


def _inputs(T: int, M: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Random arguments in float64, and a random first key for each query."""
  random, K = np.random.default_rng(seed), M + T
  shapes = {
    'q': (B, T, H, C),
    'k': (B, K, H, C),
    'v': (B, K, H, C),
    'table': (K, D),
    'w_r': (D, H, C),
    'u': (H, C),
    'v_bias': (H, C),
  }
  arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
  arrays['first'] = random.integers(0, M + 1 + np.arange(T), (B, T))
  return arrays


def _visible(first_BT: np.ndarray, M: int) -> np.ndarray:
  """The rule of DESIGN section 4, [B, T, K]."""
  first_BT = np.asarray(first_BT)
  (B, T), result = first_BT.shape, []
  for b in range(B):
    for i in range(T):
      result.append([first_BT[b, i] <= j <= M + i for j in range(M + T)])
  return np.reshape(result, (B, T, M + T))


def _brute_force(q, k, v, table, w_r, u, v_bias, first) -> np.ndarray:
  """Query by query and key by key, the four terms from the distance."""
  out_BTHC = np.zeros_like(q)
  n_queries, n_keys = q.shape[1], k.shape[1]
  M = n_keys - n_queries
  visible_BTK = _visible(first, M)
  for b, i, h in np.ndindex(*q.shape[:3]):
    weights, values = [], []
    for j in range(n_keys):
      if visible_BTK[b, i, j]:
        distance = M + i - j
        r_C = table[n_keys - 1 - distance] @ w_r[:, h]
        score = q[b, i, h] @ k[b, j, h] + q[b, i, h] @ r_C
        score += u[h] @ k[b, j, h] + v_bias[h] @ r_C
        weights.append(np.exp(score / np.sqrt(q.shape[-1])))
        values.append(v[b, j, h])
    out_BTHC[b, i, h] = np.array(weights) @ np.array(values) / sum(weights)
  return out_BTHC


def _by_gather(q, k, v, table, w_r, u, v_bias, first) -> jax.Array:
  """Plain and differentiable: r by indexing with the distance."""
  T, K = q.shape[1], k.shape[1]
  distance_TK = (K - T) + np.arange(T)[:, None] - np.arange(K)
  r_TKHC = jnp.einsum(
    'tkd,dhc->tkhc', table[np.clip(K - 1 - distance_TK, 0, K - 1)], w_r
  )
  score_BHTK = (
    jnp.einsum('bthc,bkhc->bhtk', q, k)
    + jnp.einsum('bthc,tkhc->bhtk', q, r_TKHC)
    + jnp.einsum('hc,bkhc->hbk', u, k).swapaxes(0, 1)[:, :, None]
    + jnp.einsum('hc,tkhc->htk', v_bias, r_TKHC)
  ) / np.sqrt(q.shape[-1])
  visible_BTK = _visible(np.asarray(first), K - T)
  score_BHTK = jnp.where(visible_BTK[:, None], score_BHTK, -jnp.inf)
  return jnp.einsum('bhtk,bkhc->bthc', jax.nn.softmax(score_BHTK), v)


def _on_device(arrays: dict) -> dict[str, jax.Array]:
  """As jax arrays, in float32 unless float64 is enabled."""
  return {name: jnp.asarray(array) for name, array in arrays.items()}


def _attend(arrays: dict, **options) -> jax.Array:
  attend = functools.partial(ops.relative_attention, **options)
  return jax.jit(attend)(*arrays.values())


@each_implementation
@pytest.mark.parametrize(('T', 'M'), SIZES)
def test_equals_the_definition(T, M, implementation):
  arrays = _inputs(T, M)
  expected_BTHC = _brute_force(**arrays)
  with jax.enable_x64(True):
    wide_BTHC = _attend(arrays, implementation=implementation)
    assert wide_BTHC.dtype == np.float64
    np.testing.assert_allclose(wide_BTHC, expected_BTHC, rtol=0, atol=1e-13)
  narrow_BTHC = _attend(arrays, implementation=implementation)
  assert narrow_BTHC.dtype == np.float32
  np.testing.assert_allclose(narrow_BTHC, expected_BTHC, rtol=0, atol=3e-6)


@each_implementation
def test_bfloat16_has_a_softmax_in_float32(implementation):
  arrays = _inputs(4, 8)
  narrow = {k: jnp.asarray(x, jnp.bfloat16) for k, x in arrays.items()}
  narrow['first'] = jnp.asarray(arrays['first'])
  rounded = {k: np.asarray(x, np.float64) for k, x in narrow.items()}
  out_BTHC = _attend(narrow, implementation=implementation)
  assert out_BTHC.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(out_BTHC, np.float64),
    _brute_force(**rounded),
    rtol=0,
    atol=0.05,
  )


@each_implementation
@pytest.mark.parametrize(('T', 'M'), [(1, 5), (5, 7)])
def test_gradients_equal_those_of_the_plain_version(T, M, implementation):
  arrays = _inputs(T, M, seed=1)
  weight_BTHC = np.random.default_rng(2).normal(size=arrays['q'].shape)
  *leaves, first_BT = arrays.values()

  def gradients(attend):
    def loss(*leaves):
      return (attend(*leaves, first_BT) * weight_BTHC).sum()

    return jax.jit(jax.grad(loss, tuple(range(len(leaves)))))(*leaves)

  with jax.enable_x64(True):
    attend = functools.partial(
      ops.relative_attention, implementation=implementation
    )
    ours, theirs = gradients(attend), gradients(_by_gather)
  for name, found, expected in zip(DIFFERENTIABLE, ours, theirs):
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-12, err_msg=name
    )


def test_gradients_equal_finite_differences():
  arrays = _inputs(3, 4, seed=3)
  *leaves, first_BT = arrays.values()
  random, step = np.random.default_rng(4), 1e-5
  weight_BTHC = random.normal(size=arrays['q'].shape)

  def loss(*leaves, attend=ops.relative_attention):
    return (attend(*leaves, first_BT) * weight_BTHC).sum()

  with jax.enable_x64(True):
    gradients = jax.jit(jax.grad(loss, tuple(range(len(leaves)))))(*leaves)
  for n, (name, gradient) in enumerate(zip(DIFFERENTIABLE, gradients)):
    along = random.normal(size=leaves[n].shape)

    def moved(sign, n=n, along=along):
      shifted = [*leaves]
      shifted[n] = leaves[n] + sign * step * along
      return loss(*shifted, attend=_brute_force)

    slope = (moved(1) - moved(-1)) / (2 * step)
    assert np.vdot(gradient, along) == pytest.approx(slope, rel=1e-8), name


@each_implementation
@pytest.mark.parametrize(('T', 'M'), [(4, 0), (5, 7)])
def test_a_key_gets_gradient_exactly_where_it_is_visible(T, M, implementation):
  arrays = _on_device(_inputs(T, M, seed=5))

  @jax.jit
  @functools.partial(jax.jacrev, argnums=(0, 1))
  def jacobian(k_BKHC, v_BKHC):
    changed = arrays | {'k': k_BKHC, 'v': v_BKHC}
    out_BTHC = ops.relative_attention(
      *changed.values(), implementation=implementation
    )
    return jnp.square(out_BTHC).sum((2, 3))

  visible_BTK = _visible(arrays['first'], M)
  same_row_BB = np.eye(B, dtype=bool)
  expected_BTBK = same_row_BB[:, None, :, None] & visible_BTK[:, :, None]
  of_keys, of_values = jacobian(arrays['k'], arrays['v'])
  reached_BTBK = np.abs(of_values).sum((-2, -1)) > 0
  np.testing.assert_array_equal(reached_BTBK, expected_BTBK)
  # A softmax over a single key has no slope.
  expected_BTBK &= (visible_BTK.sum(-1) > 1)[:, :, None, None]
  reached_BTBK = np.abs(of_keys).sum((-2, -1)) > 1e-6
  np.testing.assert_array_equal(reached_BTBK, expected_BTBK)


def test_visible_keys_are_the_rule():
  for T, M in SIZES[1::2]:
    first_BT = _inputs(T, M, seed=6)['first']
    np.testing.assert_array_equal(
      reference_attention.visible_keys(jnp.asarray(first_BT), T, M + T),
      _visible(first_BT, M),
    )


@pytest.mark.parametrize(('T', 'M'), [(1, 3), (4, 0), (5, 7)])
def test_shift_brings_table_rows_to_their_distance(T, M):
  raw_TK = np.random.default_rng(0).normal(size=(T, M + T)).astype(np.float32)
  shifted_TK = np.asarray(reference_attention.shift(jnp.asarray(raw_TK)))
  for i in range(T):
    for j in range(M + i + 1):
      distance = M + i - j
      assert shifted_TK[i, j] == raw_TK[i, M + T - 1 - distance]


@pytest.mark.parametrize(
  ('implementation', 'module', 'name'),
  [
    ('reference', reference_attention, 'shift'),
    ('xla', xla_attention, '_skew'),
  ],
)
def test_what_shift_leaves_right_of_the_query_never_leaks(
  implementation, module, name, monkeypatch
):
  T, M = 5, 7
  *leaves, first_BT = _on_device(_inputs(T, M, seed=7)).values()
  shift = getattr(module, name)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def measure(leaves, garbage):
    def poisoned(*arguments):
      shifted = shift(*arguments)
      key_K, last_T = np.arange(shifted.shape[-1]), M + np.arange(T)
      return jnp.where(key_K > last_T[:, None], garbage, shifted)

    monkeypatch.setattr(module, name, poisoned)
    out_BTHC = ops.relative_attention(
      *leaves, first_BT, implementation=implementation
    )
    return jnp.square(out_BTHC).sum(), out_BTHC

  clean = measure(leaves, jnp.float32(0))
  for garbage in (1e30, -1e30, np.inf, np.nan):
    dirty = measure(leaves, jnp.float32(garbage))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  monkeypatch.undo()
  # The operator's own garbage is as harmless.
  found_BTHC = jax.jit(ops.relative_attention)(*leaves, first_BT)
  np.testing.assert_allclose(found_BTHC, clean[0][1], rtol=0, atol=1e-6)
