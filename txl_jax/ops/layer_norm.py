"""Layer norm that keeps little for its gradient."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
  x: jax.Array,
  scale_D: jax.Array,
  bias_D: jax.Array,
  epsilon: float,
  n_features: int | None = None,
) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, in the dtype of x.

  Statistics are computed in float32 or wider. The backward pass keeps x as it
  is and two numbers a row, no wide copies.

  Args:
    x: [..., D].
    scale_D: gain.
    bias_D: shift.
    epsilon: added to the variance.
    n_features: those that count, the first; the others must be 0 in x, scale
      and bias. None = all.
  """
  return _forward(x, scale_D, bias_D, epsilon, n_features)[0]


def _forward(
  x: jax.Array,
  scale_D: jax.Array,
  bias_D: jax.Array,
  epsilon: float,
  n_features: int | None,
) -> tuple[jax.Array, tuple]:
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  n = n_features or x.shape[-1]
  mean = wide.sum(axis=-1, keepdims=True) / n
  centred = _only(wide - mean, n)
  variance = jnp.square(centred).sum(axis=-1, keepdims=True) / n
  inverse = jax.lax.rsqrt(variance + epsilon)
  out = centred * inverse * scale_D + bias_D
  return out.astype(x.dtype), (x, scale_D, bias_D, mean, inverse)


def _backward(
  epsilon: float, n_features: int | None, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  del epsilon
  n = n_features or gradient.shape[-1]
  x, scale_D, bias_D, mean, inverse = saved
  gradient = gradient.astype(mean.dtype)
  normed = (x.astype(mean.dtype) - mean) * inverse
  dnormed = gradient * scale_D
  along = (dnormed * normed).sum(axis=-1, keepdims=True) / n
  mean = dnormed.sum(axis=-1, keepdims=True) / n
  dx = _only((dnormed - mean - normed * along) * inverse, n)
  rows = tuple(range(x.ndim - 1))
  dscale_D = (gradient * normed).sum(axis=rows)
  return (
    dx.astype(x.dtype),
    dscale_D.astype(scale_D.dtype),
    gradient.sum(axis=rows).astype(bias_D.dtype),
  )


def _only(x: jax.Array, n_features: int) -> jax.Array:
  """The features that count; 0 for the others."""
  if n_features == x.shape[-1]:
    return x
  return jnp.where(jnp.arange(x.shape[-1]) < n_features, x, 0)


layer_norm.defvjp(_forward, _backward)
