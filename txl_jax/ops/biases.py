"""Content bias u and position bias v of the queries (section 3.3)."""

import jax
import jax.numpy as jnp


def biased(q_BTHC: jax.Array, bias_HC: jax.Array, scale: float) -> jax.Array:
  """Queries with a bias, scaled; added in float32 or wider."""
  wide = jnp.promote_types(q_BTHC.dtype, jnp.float32)
  return ((q_BTHC.astype(wide) + bias_HC.astype(wide)) * scale).astype(
    q_BTHC.dtype
  )


def excess(u_HC: jax.Array, v_bias_HC: jax.Array, scale: float) -> jax.Array:
  """What the position bias exceeds the content bias by, scaled, float32."""
  u_HC, v_bias_HC = (x.astype(jnp.float32) for x in (u_HC, v_bias_HC))
  return (v_bias_HC - u_HC) * scale


def bias_of_rows(excess_HC: jax.Array, r_HWC: jax.Array) -> jax.Array:
  """What that adds to products with the rows of a table, float32 [H, W]."""
  return jnp.einsum(
    'hc,hwc->hw',
    excess_HC,
    r_HWC.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
