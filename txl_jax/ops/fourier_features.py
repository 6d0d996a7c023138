"""The position table as an inner product of few features.

A row of the sinusoid table is a sum of D / 2 waves of the distance, most of
them so slow that over K distances they are alike. All of them are, to about
1e-6, sums of the waves

  f(d) = [cos(w d), sin(w d)]

at F / 2 frequencies w: the table's own high ones, and multiples of a base
frequency below. With R = f Q for a constant Q [F, D],

  a . r_{i - j} = a . W_R^T Q^T f(i - j) = g(a, i) . f(j),

since the waves of a difference are products of waves. So the position scores
are those of ordinary attention with F more features, and any kernel for that
will do. It holds for the whole table as it stands in the paper: not for one
whose elements are dropped, or whose distances are clamped.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.ops.sinusoids import frequencies

# The base frequency has a period of so many times the largest distance, or of
# this many keys if they are fewer.
_OVERSAMPLING, _FEW = 1.5, 64
_FEWEST = 10  # multiples of the base frequency
_REGULARISATION = 1e-12


class Basis(NamedTuple):
  """The features of a table of K distances.

  Attributes:
    frequency_X: X = F / 2 angular frequencies, float64.
    weight_FD: Q; f(d) Q is the row of distance d, float64.
  """

  frequency_X: np.ndarray
  weight_FD: np.ndarray


@functools.cache
def basis(n_keys: int, d_model: int, width: int = 0) -> Basis:
  """Features of the distances 0 to n_keys - 1.

  Args:
    n_keys: K.
    d_model: D, the width of the table.
    width: so many features at least, the surplus (of an odd width less one)
      with weight 0.
  """
  own_X = np.float64(frequencies(d_model))
  n_keys = max(n_keys, _FEW)
  base = 2 * np.pi / (_OVERSAMPLING * n_keys)
  gap_X = own_X - np.append(own_X[1:], 0)
  high_X = own_X[gap_X >= base]
  # Below the lowest of these the table's are closer than multiples of the base.
  top = high_X.min() if len(high_X) else own_X[0] + base
  n_low = max(math.ceil((top - 1e-9) / base), _FEWEST)
  frequency_X = np.append(base * np.arange(n_low), high_X)
  distance_K1 = np.arange(n_keys)[:, None]
  wave_KF = waves(distance_K1[:, 0], frequency_X)
  angle_KX = distance_K1 * own_X
  table_KD = np.concatenate([np.sin(angle_KX), np.cos(angle_KX)], axis=-1)
  ridge = _REGULARISATION * n_keys * np.eye(wave_KF.shape[1])
  weight_FD = np.linalg.solve(wave_KF.T @ wave_KF + ridge, wave_KF.T @ table_KD)
  surplus = max(width // 2 - len(frequency_X), 0)
  weight_2XD = weight_FD.reshape(2, -1, d_model)
  weight_2XD = np.pad(weight_2XD, ((0, 0), (0, surplus), (0, 0)))
  return Basis(
    np.pad(frequency_X, (0, surplus)), weight_2XD.reshape(-1, d_model)
  )


def waves(place: np.ndarray, frequency_X: np.ndarray) -> np.ndarray:
  """f at these places [..., F]."""
  angle = place[..., None] * frequency_X
  return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)


def key_features(n_keys: int, d_model: int, width: int = 0) -> np.ndarray:
  """f(j) of all keys [K, F], float32; the arguments are those of `basis`."""
  frequency_X = basis(n_keys, d_model, width).frequency_X
  return waves(np.arange(n_keys), frequency_X).astype(np.float32)


def query_features(
  qv_BTHC: jax.Array, w_r_DHC: jax.Array, n_keys: int, width: int = 0
) -> jax.Array:
  """g of queries with position bias [B, T, H, F], in their dtype.

  Args:
    qv_BTHC: queries with position bias; the last one stands at the last key.
    w_r_DHC: W_R.
    n_keys: K.
    width: as for `basis`.
  """
  T, D = qv_BTHC.shape[1], w_r_DHC.shape[0]
  frequency_X, weight_FD = basis(n_keys, D, width)
  wide = jnp.promote_types(qv_BTHC.dtype, jnp.float32)
  projected_FHC = jnp.einsum(
    'fd,dhc->fhc', jnp.asarray(weight_FD, wide), w_r_DHC.astype(wide)
  )
  z_BTHF = jnp.einsum(
    'bthc,fhc->bthf',
    qv_BTHC,
    projected_FHC.astype(qv_BTHC.dtype),
    preferred_element_type=wide,
  )
  own_T = np.arange(n_keys - T, n_keys)
  wave_TF = jnp.asarray(waves(own_T, frequency_X), wide)[:, None]
  cos_T1X, sin_T1X = jnp.split(wave_TF, 2, axis=-1)
  even_BTHX, odd_BTHX = jnp.split(z_BTHF, 2, axis=-1)
  turned = (
    even_BTHX * cos_T1X + odd_BTHX * sin_T1X,
    even_BTHX * sin_T1X - odd_BTHX * cos_T1X,
  )
  return jnp.concatenate(turned, axis=-1).astype(qv_BTHC.dtype)
