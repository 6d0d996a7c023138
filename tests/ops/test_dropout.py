"""Masks from a hash: how random they are, and that no mesh changes them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from txl_jax.ops.dropout import (
  dropout,
  keep_mask,
  relu_dropout,
  row_index,
  seed_of,
  weight_mask,
)

MASKS = pytest.mark.parametrize('mask_of', [keep_mask, weight_mask])
SEEDS = [0, 1, 2, 3, 2**31, 2**32 - 1]


def _mask(seed, shape, rate, mask_of=keep_mask) -> np.ndarray:
  return np.asarray(mask_of(jnp.uint32(seed), shape, rate))


def _assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
  """The correlation of two masks is within 5 of its standard deviations."""
  correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
  assert abs(correlation) < 5 / np.sqrt(a.size)


@MASKS
@pytest.mark.parametrize('rate', [0.0, 0.01, 0.15, 0.5, 0.99])
def test_share_that_is_dropped(rate, mask_of):
  n = 512 * 512
  for seed in SEEDS:
    dropped = 1 - _mask(seed, (512, 512), rate, mask_of).mean()
    assert abs(dropped - rate) <= 4 * np.sqrt(rate * (1 - rate) / n)


@MASKS
@pytest.mark.parametrize('shape', [(512, 512), (4, 8, 64, 96)])
def test_neighbours_are_independent(shape, mask_of):
  # Keys at a distance of 8 share the bits of a hash.
  for seed, axis, distance in itertools.product(
    SEEDS[:3], range(len(shape)), (1, 2, 8)
  ):
    if distance >= shape[axis]:
      continue
    mask = np.moveaxis(_mask(seed, shape, 0.3, mask_of), axis, 0)
    _assert_uncorrelated(mask[distance:], mask[:-distance])


def test_seeds_are_independent():
  masks = [_mask(seed, (256, 512), 0.3) for seed in SEEDS]
  for a, b in itertools.combinations(masks, 2):
    _assert_uncorrelated(a, b)


@MASKS
def test_rows_and_columns_each_lose_the_same_share(mask_of):
  n, rate = 1024, 0.25
  mask = _mask(11, (n, n), rate, mask_of)
  for axis in (0, 1):
    counts = (~mask).sum(axis)
    # The variance of a binomial, itself within 5 standard deviations.
    expected = n * rate * (1 - rate)
    assert abs(counts.var() / expected - 1) < 5 * np.sqrt(2 / n)
    assert abs(counts - n * rate).max() < 6 * np.sqrt(expected)


@MASKS
def test_pairs_and_triples_of_bits_are_equally_frequent(mask_of):
  """No pattern along a row is more frequent than chance makes it."""
  mask = _mask(5, (256, 1024), 0.5, mask_of).astype(int)
  patterns = mask[:, :-2] + 2 * mask[:, 1:-1] + 4 * mask[:, 2:]
  counts = np.bincount(patterns.ravel(), minlength=8)
  n = patterns.size
  # Overlapping triples: their variance is below three times the binomial one.
  assert abs(counts - n / 8).max() < 5 * np.sqrt(3 * n * 7 / 64)


def test_row_index_is_flat():
  expected = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
  np.testing.assert_array_equal(row_index((2, 3, 4)), expected)
  assert row_index(()).shape == ()


@pytest.mark.parametrize('shape', [(7,), (5, 6), (2, 3, 4)])
def test_dropout_scales_what_it_keeps_and_its_gradient_likewise(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  seed, rate = jnp.uint32(3), 0.25
  scale = keep_mask(seed, shape, rate) / (1 - rate)
  out, pullback = jax.vjp(lambda x: dropout(x, seed, rate), x)
  np.testing.assert_allclose(out, x * scale, rtol=1e-6)
  np.testing.assert_allclose(pullback(x)[0], x * scale, rtol=1e-6)
  assert dropout(x, seed, 0.0) is x


def test_the_mean_stays_in_bfloat16():
  # 1 / 0.9 is no bfloat16: its error would show in the mean.
  x = jax.random.uniform(jax.random.key(0), (512, 1024)).astype(jnp.bfloat16)
  out = dropout(x, jnp.uint32(0), 0.1)
  assert out.dtype == jnp.bfloat16
  mean = np.asarray(out, np.float64).mean()
  assert mean == pytest.approx(np.asarray(x, np.float64).mean(), rel=2e-3)


def test_no_mask_is_kept_for_the_backward_pass():
  x = jnp.ones((8, 16))
  _, pullback = jax.vjp(lambda x: dropout(x, jnp.uint32(1), 0.5), x)
  assert sum(np.size(leaf) for leaf in jax.tree.leaves(pullback)) <= 1


def test_the_mask_does_not_depend_on_the_mesh():
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  x = jnp.ones((8, 6, 4, 10))
  seed = jnp.uint32(9)
  whole = jax.jit(dropout, static_argnums=2)(x, seed, 0.3)
  for spec in (('a', None, 'b'), ('b', None, 'a', None), (None, 'b', 'a')):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    divided = jax.jit(dropout, static_argnums=2, out_shardings=sharding)(
      jax.device_put(x, sharding), seed, 0.3
    )
    np.testing.assert_array_equal(divided, whole)


def test_seeds_follow_their_key():
  keys = jax.random.split(jax.random.key(0), 100)
  seeds = jax.vmap(seed_of)(keys)
  assert seeds.dtype == jnp.uint32
  assert len(np.unique(seeds)) == 100
  assert seed_of(keys[0]) == seeds[0]


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_relu_dropout_is_dropout_of_relu(rate):
  x_BD = jax.random.normal(jax.random.key(0), (7, 33)).at[0, 0].set(0.0)
  seed, weight_BD = jnp.uint32(5), jax.random.normal(jax.random.key(1), (7, 33))

  def plain(x_BD):
    return (weight_BD * dropout(jax.nn.relu(x_BD), seed, rate)).sum()

  def lean(x_BD):
    return (weight_BD * relu_dropout(x_BD, seed, rate)).sum()

  for found, expected in zip(
    jax.value_and_grad(lean)(x_BD), jax.value_and_grad(plain)(x_BD)
  ):
    np.testing.assert_array_equal(found, expected)
