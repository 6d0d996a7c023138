"""The sinusoid table against loops over its formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.model.positions import drop_positions
from txl_jax.ops.sinusoids import sinusoid_table


def _by_loops(n_keys: int, d_model: int, clamp: int | None) -> np.ndarray:
  """concat[sin(distance * f_i), cos(distance * f_i)], f_i = 10000**(-2i/D)."""
  table_KD = np.zeros((n_keys, d_model))
  for row in range(n_keys):
    distance = n_keys - 1 - row
    if clamp is not None and distance > clamp:
      distance = clamp
    for i in range(d_model // 2):
      angle = distance * 10000 ** (-2 * i / d_model)
      table_KD[row, i] = math.sin(angle)
      table_KD[row, d_model // 2 + i] = math.cos(angle)
  return table_KD


@pytest.mark.parametrize(('n_keys', 'd_model'), [(1, 2), (40, 16)])
@pytest.mark.parametrize('clamp', [None, 0, 1, 7, 100])
def test_equals_the_formula(n_keys, d_model, clamp):
  table_KD = sinusoid_table(n_keys, d_model, clamp)
  assert table_KD.dtype == np.float32
  # The angle is rounded to float32, twice.
  largest = n_keys if clamp is None else min(clamp, n_keys)
  np.testing.assert_allclose(
    table_KD,
    _by_loops(n_keys, d_model, clamp),
    rtol=0,
    atol=(2 + largest) * 2.0**-23,
  )


def test_a_worked_example():
  # D = 4: frequencies 1 and 1/100. Distances 2, 1, 0.
  expected = [
    [0.9092974, 0.0199987, -0.4161468, 0.9998000],
    [0.8414710, 0.0099998, 0.5403023, 0.9999500],
    [0.0, 0.0, 1.0, 1.0],
  ]
  np.testing.assert_allclose(sinusoid_table(3, 4), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize('clamp', [None, 0, 3])
def test_the_last_row_is_distance_zero(clamp):
  table_KD = np.asarray(sinusoid_table(9, 6, clamp))
  assert (table_KD[-1, :3] == 0).all()
  assert (table_KD[-1, 3:] == 1).all()


def test_clamped_distances_share_a_row_and_the_others_stay():
  whole_KD, clamped_KD = sinusoid_table(9, 6), sinusoid_table(9, 6, 3)
  # Rows 0..5 are the distances 8..3.
  assert (clamped_KD[:6] == whole_KD[5]).all()
  np.testing.assert_array_equal(clamped_KD[6:], whole_KD[6:])
  assert (whole_KD[:5] != whole_KD[5]).any(axis=1).all()


def test_rows_depend_on_the_distance_only():
  np.testing.assert_array_equal(
    sinusoid_table(20, 8)[-7:], sinusoid_table(7, 8)
  )


def test_float64_takes_its_angles_in_float64():
  with jax.enable_x64(True):
    table_KD = np.asarray(sinusoid_table(5000, 8, None, np.float64))
  assert table_KD.dtype == np.float64
  frequency = np.float64(1 / np.float32(10000) ** np.float32(0.25))
  np.testing.assert_allclose(table_KD[0, 1], math.sin(4999 * frequency))


@pytest.mark.parametrize('whole_features', [False, True])
def test_position_dropout(whole_features):
  plain_KD = np.full((9, 16), 3.0)
  table_KD = drop_positions(
    jnp.asarray(plain_KD),
    jax.random.key(0),
    rate=0.25,
    whole_features=whole_features,
  )
  kept_KD = np.asarray(table_KD) != 0
  np.testing.assert_allclose(table_KD[kept_KD], 4.0)
  assert 0.5 < kept_KD.mean() < 0.95
  alike = (kept_KD == kept_KD[0]).all()
  assert alike == whole_features
