"""The position table by few features."""

import numpy as np
import pytest

from txl_jax.ops import fourier_features as lib
from txl_jax.ops.sinusoids import sinusoid_table


@pytest.mark.parametrize(
  'n_keys, d_model, most',
  [
    (1, 32, 32),
    (300, 410, 112),
    (384, 512, 128),
    (768, 1024, 256),
    (1024, 512, 192),
    (4000, 1024, 448),
  ],
)
def test_the_table_is_a_product_of_few_features(n_keys, d_model, most):
  frequency_X, weight_FD = lib.basis(n_keys, d_model)
  distance_K = np.arange(n_keys)[::-1]
  found = lib.waves(distance_K, frequency_X) @ weight_FD
  angle = distance_K[:, None] * np.float64(
    1 / np.float32(10000) ** (np.arange(0, d_model, 2, dtype='f4') / d_model)
  )
  expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert len(weight_FD) <= most


def test_scores_are_products_of_queries_and_keys():
  T, K, D, C = 5, 12, 16, 4
  random = np.random.default_rng(0)
  q_BTHC = random.normal(size=(1, T, 2, C)).astype(np.float32)
  w_r_DHC = random.normal(size=(D, 2, C)).astype(np.float32)
  g_BTHF = lib.query_features(q_BTHC, w_r_DHC, K)
  found = np.einsum('bthf,kf->bhtk', g_BTHF, lib.key_features(K, D))
  # Row K - 1 - d of the table stands for distance d.
  r_KHC = np.einsum('kd,dhc->khc', sinusoid_table(K, D), w_r_DHC)
  for i in range(T):
    for j in range(K - T + i + 1):
      row = r_KHC[K - 1 - (K - T + i - j)]
      expected = np.einsum('hc,hc->h', q_BTHC[0, i], row)
      np.testing.assert_allclose(found[0, :, i, j], expected, atol=2e-4)
