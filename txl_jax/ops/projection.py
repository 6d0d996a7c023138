"""Projections of hidden states to heads, with gradients of our own.

XLA merges products that share an operand, here the hidden states, by copying
what they do not share to one array. For the gradients of the weights of
queries, keys and values these copies cost more than the products.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def project(hidden_BKD: jax.Array, w_DHC: jax.Array) -> jax.Array:
  """Hidden states to heads [B, K, H, C]."""
  return jnp.einsum('bkd,dhc->bkhc', hidden_BKD, w_DHC)


def _forward(
  hidden_BKD: jax.Array, w_DHC: jax.Array
) -> tuple[jax.Array, tuple]:
  return project(hidden_BKD, w_DHC), (hidden_BKD, w_DHC)


def _backward(
  saved: tuple[jax.Array, jax.Array], gradient_BKHC: jax.Array
) -> tuple[jax.Array, jax.Array]:
  hidden_BKD, w_DHC = saved
  return (
    _to_hidden(gradient_BKHC, w_DHC),
    _to_weight(hidden_BKD, gradient_BKHC),
  )


project.defvjp(_forward, _backward)


@jax.custom_vjp
def project_both(
  memory_BMD: jax.Array, hidden_BTD: jax.Array, w_DHC: jax.Array
) -> jax.Array:
  """Memory and segment to heads [B, M + T, H, C]: one product for both."""
  return project(_joined(memory_BMD, hidden_BTD), w_DHC)


def _forward_both(
  memory_BMD: jax.Array, hidden_BTD: jax.Array, w_DHC: jax.Array
) -> tuple[jax.Array, tuple]:
  result = project_both(memory_BMD, hidden_BTD, w_DHC)
  return result, (memory_BMD, hidden_BTD, w_DHC)


def _backward_both(
  saved: tuple[jax.Array, jax.Array, jax.Array], gradient_BKHC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  memory_BMD, hidden_BTD, w_DHC = saved
  M = memory_BMD.shape[1]
  # Two products, as the memory's is hardly ever asked for.
  return (
    _to_hidden(gradient_BKHC[:, :M], w_DHC),
    _to_hidden(gradient_BKHC[:, M:], w_DHC),
    _to_weight(_joined(memory_BMD, hidden_BTD), gradient_BKHC),
  )


project_both.defvjp(_forward_both, _backward_both)


def _joined(memory_BMD: jax.Array, hidden_BTD: jax.Array) -> jax.Array:
  return jnp.concatenate([memory_BMD, hidden_BTD], axis=1)


def _to_hidden(gradient_BKHC: jax.Array, w_DHC: jax.Array) -> jax.Array:
  return jnp.einsum('bkhc,dhc->bkd', gradient_BKHC, w_DHC)


def _to_weight(hidden_BKD: jax.Array, gradient_BKHC: jax.Array) -> jax.Array:
  # So that no two of these products share an operand.
  apart = jax.lax.optimization_barrier((hidden_BKD, gradient_BKHC))
  return jnp.einsum('bkd,bkhc->dhc', *apart)
