"""Losses in chunks of rows against log-softmax of everything at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txl_jax.ops import cross_entropy as lib
from txl_jax.ops import tail_cross_entropy as tails_lib
from txl_jax.ops.tail_cross_entropy import Tail, rows_at_once

X, D, E, V = 11, 6, 3, 10


@pytest.fixture
def tiny_tiles(monkeypatch):
  """Chunks of four rows or so."""
  monkeypatch.setattr(lib, 'ALIGNMENT', 4)
  monkeypatch.setattr(lib, 'LOGITS_AT_ONCE', 4 * V)


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
  return random.normal(size=shape).astype(np.float32)


def _plain(hidden_XE, weight_VE, bias_V, targets_X) -> jax.Array:
  logits_XV = jnp.matmul(hidden_XE, weight_VE.T, precision='highest') + bias_V
  logp_XV = jax.nn.log_softmax(logits_XV)
  return -jnp.take_along_axis(logp_XV, targets_X[:, None], axis=1)[:, 0]


def _inputs(n_rows: int = X) -> tuple:
  random = np.random.default_rng(0)
  targets_X = random.integers(0, V, n_rows).astype(np.int32)
  weights = _normal(random, V, D), 3 * _normal(random, V)
  return _normal(random, n_rows, D), *weights, targets_X


def _with_gradients(function, arrays, targets, cotangent_X) -> tuple:
  """The losses, and the gradients of their weighted sum for all arrays."""

  def run(arrays):
    nll_X, pull = jax.vjp(lambda *a: function(*a, *targets), *arrays)
    return nll_X, pull(jnp.asarray(cotangent_X, nll_X.dtype))

  return jax.jit(run)(arrays)


def _assert_close(found, expected, tolerance: float) -> None:
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    found,
    expected,
  )


@pytest.mark.parametrize('n_rows', [1, 8, X])
def test_equals_log_softmax(n_rows, tiny_tiles):
  *arrays, targets_X = _inputs(n_rows)
  cotangent_X = _normal(np.random.default_rng(1), n_rows)
  found, expected = (
    _with_gradients(function, arrays, (targets_X,), cotangent_X)
    for function in (lib.cross_entropy, _plain)
  )
  _assert_close(found, expected, 1e-5)


def test_float64_stays_float64(tiny_tiles):
  with jax.enable_x64(True):
    *arrays, targets_X = _inputs()
    arrays = [a.astype(np.float64) for a in arrays]
    found, expected = (
      _with_gradients(function, arrays, (targets_X,), np.ones(X))
      for function in (lib.cross_entropy, _plain)
    )
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(found))
    _assert_close(found, expected, 1e-13)


def test_bfloat16_accumulates_in_float32(tiny_tiles):
  # Powers of two: bfloat16 holds every input and product, not the sums.
  hidden_XD, weight_VD, bias_V, targets_X = _inputs()
  hidden_XD, weight_VD = (
    np.sign(a) * 2.0 ** np.round(np.log2(np.abs(a)))
    for a in (hidden_XD, weight_VD)
  )
  low = jnp.asarray(hidden_XD, jnp.bfloat16)
  nll_X, (d_hidden_XD, d_weight_VD, d_bias_V) = _with_gradients(
    lib.cross_entropy, (low, weight_VD, bias_V), (targets_X,), np.ones(X)
  )
  expected, gradients = _with_gradients(
    _plain, (hidden_XD, weight_VD, bias_V), (targets_X,), np.ones(X)
  )
  assert nll_X.dtype == d_weight_VD.dtype == d_bias_V.dtype == np.float32
  assert d_hidden_XD.dtype == jnp.bfloat16
  np.testing.assert_allclose(nll_X, expected, rtol=1e-5, atol=1e-5)
  found = d_hidden_XD.astype(np.float32), d_weight_VD, d_bias_V
  _assert_close(found, gradients, 2e-2)


@pytest.mark.parametrize('n_words', [1, 128, 130])
def test_words_that_pad_the_vocabulary_change_nothing(n_words):
  random = np.random.default_rng(2)
  weight_VD, bias_V = _normal(random, n_words, D), _normal(random, n_words)
  padded_VD, padded_V = lib.pad_vocabulary(weight_VD, bias_V)
  assert len(padded_VD) == len(padded_V) == -(-n_words // 128) * 128
  targets_X = random.integers(0, n_words, X)
  arguments = (_normal(random, X, D), weight_VD, bias_V), (targets_X,)
  # Hidden states so large that a logit of 0 would be the highest.
  arguments[0][0][0] = -1e3 * weight_VD[0]

  def padded(hidden_XD, weight_VD, bias_V, targets_X):
    words = lib.pad_vocabulary(weight_VD, bias_V)
    return lib.cross_entropy(hidden_XD, *words, targets_X)

  found, expected = (
    _with_gradients(function, *arguments, np.ones(X))
    for function in (padded, _plain)
  )
  _assert_close(found, expected, 1e-5)


TAILS = (
  Tail(*_inputs()[1:3], None),
  Tail(
    _normal(np.random.default_rng(3), 7, E),
    _normal(np.random.default_rng(4), 7),
    _normal(np.random.default_rng(5), E, D),
  ),
)


def _plain_tails(hidden_XD, tails, tail_X, targets_X) -> jax.Array:
  nll_X = jnp.zeros(len(tail_X))
  for i, tail in enumerate(tails):
    projection_ED = tail.projection_ED
    narrow = hidden_XD if projection_ED is None else hidden_XD @ projection_ED.T
    every_X = _plain(
      narrow, tail.weight_VE, tail.bias_V, targets_X % len(tail.bias_V)
    )
    nll_X = jnp.where(tail_X == i + 1, every_X, nll_X)
  return nll_X


@functools.partial(jax.jit, static_argnums=0)
def _tail_results(static: bool, tail_X, targets_X, cotangent_X) -> tuple:
  function = functools.partial(tails_lib.tail_cross_entropy, (4, 3))
  return _with_gradients(
    function if static else _plain_tails,
    (_inputs()[0], TAILS),
    (tail_X, targets_X),
    cotangent_X,
  )


@given(
  st.lists(st.integers(0, 2), min_size=X, max_size=X), st.integers(0, 2**32)
)
@settings(max_examples=30, deadline=None)
def test_tails_equal_log_softmax_wherever_the_rows_are(tail_X, seed):
  random, tail_X = np.random.default_rng(seed), np.array(tail_X, np.int32)
  targets_X = random.integers(0, np.array([1, V, 7])[tail_X]).astype(np.int32)
  arguments = tail_X, targets_X, _normal(random, X)
  found, expected = (_tail_results(static, *arguments) for static in (1, 0))
  _assert_close(found, expected, 1e-5)
  # Rows in no tail, and tails without rows, get exactly nothing.
  nll_X, (d_hidden_XD, d_tails) = found
  assert not np.any(nll_X[tail_X == 0])
  assert not np.any(d_hidden_XD[tail_X == 0])
  for i, d_tail in enumerate(d_tails):
    if i + 1 not in tail_X:
      assert not any(np.any(leaf) for leaf in jax.tree.leaves(d_tail))


def test_tails_under_vmap():
  random = np.random.default_rng(6)
  hidden_2XD = _normal(random, 2, X, D)
  # All rows in one tail, then none in any.
  tail_2X = np.repeat([[2], [0]], X, axis=1).astype(np.int32)
  function = functools.partial(tails_lib.tail_cross_entropy, (4, 3))
  targets_2X = random.integers(0, 7, (2, X)).astype(np.int32)

  def gradient(function):
    def loss(hidden_XD, tail_X, targets_X):
      return function(hidden_XD, TAILS, tail_X, targets_X).sum()

    return jax.jit(jax.vmap(jax.grad(loss)))(hidden_2XD, tail_2X, targets_2X)

  _assert_close(gradient(function), gradient(_plain_tails), 1e-5)


@given(
  n_rows=st.integers(1, 100_000),
  low=st.integers(1, 200_000),
  size=st.integers(1, 600_000),
  rest=st.integers(0, 200_000),
)
def test_rows_at_once_bound_the_logits(n_rows, low, size, rest):
  rows = rows_at_once(n_rows, low, low + size, low + size + rest)
  assert 1 <= rows <= n_rows
  assert rows <= 128 or rows * size <= lib.LOGITS_AT_ONCE
  assert rows in (n_rows, rows // 128 * 128)


def test_memory_does_not_grow_with_rows_times_words():
  words, width, low = 50_000, 64, 10_000

  def temporary(n_rows: int) -> int:
    """Bytes beside arguments and results, of losses and gradients."""
    rows = (rows_at_once(n_rows, low, low + words, low + words),)

    def loss(hidden_XE, weight_VE, bias_V, tail_X, targets_X):
      tails = (Tail(weight_VE, bias_V, None),)
      nll_X = lib.cross_entropy(hidden_XE, weight_VE, bias_V, targets_X)
      nll_X += tails_lib.tail_cross_entropy(
        rows, hidden_XE, tails, tail_X, targets_X
      )
      return nll_X.sum()

    shapes = [(n_rows, width), (words, width), (words,)]
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    arrays += 2 * [jax.ShapeDtypeStruct((n_rows,), jnp.int32)]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays)
    return compiled.compile().memory_analysis().temp_size_in_bytes

  small, large = temporary(8_192), temporary(32_768)
  added = (32_768 - 8_192) * 4
  # Some rows of the model's width, against the logits of each added row.
  assert large - small < 10 * added * width < added * words / 50
  assert small < 5 * 4 * lib.LOGITS_AT_ONCE
