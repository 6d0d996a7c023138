"""Layer norm that keeps little for its gradient."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
  x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> jax.Array:
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, in the dtype of x.

  Statistics are computed in float32 or wider. The backward pass keeps x as it
  is and two numbers a row, no wide copies.

  Args:
    x: [..., D].
    scale_D: gain.
    bias_D: shift.
    epsilon: added to the variance.
  """
  return _forward(x, scale_D, bias_D, epsilon)[0]


def _forward(
  x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple]:
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = wide.mean(axis=-1, keepdims=True)
  centred = wide - mean
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + epsilon)
  out = centred * inverse * scale_D + bias_D
  return out.astype(x.dtype), (x, scale_D, bias_D, mean, inverse)


def _backward(
  epsilon: float, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  del epsilon
  x, scale_D, bias_D, mean, inverse = saved
  gradient = gradient.astype(mean.dtype)
  normed = (x.astype(mean.dtype) - mean) * inverse
  dnormed = gradient * scale_D
  along = (dnormed * normed).mean(axis=-1, keepdims=True)
  dx = (
    dnormed - dnormed.mean(axis=-1, keepdims=True) - normed * along
  ) * inverse
  rows = tuple(range(x.ndim - 1))
  dscale_D = (gradient * normed).sum(axis=rows)
  return (
    dx.astype(x.dtype),
    dscale_D.astype(scale_D.dtype),
    gradient.sum(axis=rows).astype(bias_D.dtype),
  )


layer_norm.defvjp(_forward, _backward)
