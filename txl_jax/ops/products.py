"""Products of activations and weights, with gradients of our own.

XLA would do three things to them that cost more than they save on a GPU. It
merges products that share an operand, such as the projections to keys and to
values, and copies what they do not share into one array, or the results out of
one. It divides sums over many rows, as the gradients of weights are, into
powers of two, for which it copies both operands if their number of rows does
not divide. And it puts such sums off to the end, while the operands wait.
"""

import functools
import math

import jax
import jax.numpy as jnp

from txl_jax.ops import shards
from txl_jax.ops.alignment import ALIGNMENT, pad
from txl_jax.ops.hopper import MULTIPROCESSORS

# Of a matrix product on a GPU: sides of a tile, and tiles at work at once.
_TILE, _AT_ONCE = 128, MULTIPROCESSORS


@jax.custom_vjp
def product(x: jax.Array, w_DE: jax.Array) -> jax.Array:
  """x [..., D] times a matrix: [..., E]."""
  return jnp.einsum('...d,de->...e', x, w_DE)


def _forward(x: jax.Array, w_DE: jax.Array) -> tuple[jax.Array, tuple]:
  return product(x, w_DE), (x, w_DE)


def _backward(
  saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, w_DE = saved
  return with_weight(to_operand(gradient, w_DE), x, gradient)


product.defvjp(_forward, _backward)


def project(hidden_BKD: jax.Array, w_DHC: jax.Array) -> jax.Array:
  """Hidden states to heads [B, K, H, C]."""
  return _heads(product(hidden_BKD, _matrix(w_DHC)), w_DHC)


def join_heads(x_BTHC: jax.Array, w_HCD: jax.Array) -> jax.Array:
  """Heads to hidden states [B, T, D]."""
  x_BTE = x_BTHC.reshape(*x_BTHC.shape[:2], -1)
  return product(x_BTE, w_HCD.reshape(-1, w_HCD.shape[-1]))


def project_both(
  memory_BMD: jax.Array, hidden_BTD: jax.Array, w_DHC: jax.Array, length: int
) -> jax.Array:
  """Memory and segment to heads, [B, length, H, C], in one product.

  Args:
    memory_BMD: hidden states of the memory.
    hidden_BTD: of the segment.
    w_DHC: a weight.
    length: M + T or more; the rest is zeros.
  """
  w_DE = _matrix(w_DHC)
  return _heads(_product_of_both(length, memory_BMD, hidden_BTD, w_DE), w_DHC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_of_both(
  length: int, memory_BMD: jax.Array, hidden_BTD: jax.Array, w_DE: jax.Array
) -> jax.Array:
  whole_BLD = joined(length, memory_BMD, hidden_BTD)
  return jnp.einsum('bld,de->ble', *apart(whole_BLD, w_DE))


def _forward_of_both(length: int, *operands: jax.Array) -> tuple:
  return _product_of_both(length, *operands), operands


def _backward_of_both(
  length: int, saved: tuple[jax.Array, ...], gradient_BLE: jax.Array
) -> tuple[jax.Array, ...]:
  memory_BMD, hidden_BTD, w_DE = saved
  M, K = memory_BMD.shape[1], memory_BMD.shape[1] + hidden_BTD.shape[1]
  whole_BLD = joined(length, memory_BMD, hidden_BTD)
  # The memory's for itself, as it is hardly ever asked for.
  return (
    to_operand(gradient_BLE[:, :M], w_DE),
    *with_weight(
      to_operand(gradient_BLE[:, M:K], w_DE), whole_BLD, gradient_BLE
    ),
  )


_product_of_both.defvjp(_forward_of_both, _backward_of_both)


def joined(
  length: int, memory_BMD: jax.Array, hidden_BTD: jax.Array
) -> jax.Array:
  """Memory and segment, and zeros up to this length."""
  whole_BKD = jnp.concatenate([memory_BMD, hidden_BTD], axis=1)
  B, _, D = whole_BKD.shape
  return pad(whole_BKD, (B, length, D))


def _matrix(w_DHC: jax.Array) -> jax.Array:
  return w_DHC.reshape(len(w_DHC), -1)


def _heads(x_BKE: jax.Array, w_DHC: jax.Array) -> jax.Array:
  return x_BKE.reshape(*x_BKE.shape[:2], *w_DHC.shape[1:])


def to_operand(gradient: jax.Array, w_DE: jax.Array) -> jax.Array:
  """The gradient of a product's left operand, given that of the product."""
  return jnp.einsum('...e,de->...d', gradient, w_DE)


def with_weight(
  of_operand: jax.Array, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The operand's gradient, and that of the weight.

  Neither is computed later than the other. But what each of G devices has found
  for the weight may be summed at any time, so that XLA can join such sums.
  """
  of_rows = shards.per_shard(
    lambda *operands: _to_weight(*operands)[None],
    (('rows',), ('rows',)),
    ('rows',),
  )
  of_operand, parts_GDE = _together(of_operand, of_rows(x, gradient))
  # In the type that they have: that is what devices send.
  zero = jnp.zeros((), parts_GDE.dtype)
  return of_operand, jax.lax.reduce(parts_GDE, zero, jax.lax.add, (0,))


def _to_weight(x: jax.Array, gradient: jax.Array) -> jax.Array:
  x, gradient = (y.reshape(-1, y.shape[-1]) for y in apart(x, gradient))
  n_groups = _groups(len(x), x.shape[-1], gradient.shape[-1])
  if n_groups == 1:
    return jnp.einsum('xd,xe->de', x, gradient)
  x, gradient = (y.reshape(n_groups, -1, y.shape[-1]) for y in (x, gradient))
  wide = jnp.promote_types(x.dtype, jnp.float32)
  parts = jnp.einsum('gxd,gxe->gde', x, gradient, preferred_element_type=wide)
  return parts.sum(0).astype(x.dtype)


def _groups(n_rows: int, D: int, E: int) -> int:
  """Groups of rows to sum one by one, if XLA cannot divide them well itself."""
  if n_rows % (16 * ALIGNMENT) == 0 or shards.is_divided('rows'):
    return 1
  n_tiles = math.ceil(D / _TILE) * math.ceil(E / _TILE)
  wanted = range(math.ceil(_AT_ONCE / n_tiles), 2 * _AT_ONCE)
  even = (n for n in wanted if n_rows % (n * ALIGNMENT) == 0)
  return next(even, 1)


def apart(*operands: jax.Array) -> tuple[jax.Array, ...]:
  """The same, but XLA may not look through: they are there for one use."""
  return jax.lax.optimization_barrier(operands)


def _together(*results: jax.Array) -> tuple[jax.Array, ...]:
  """The same, but none later than the others: what they need can then go."""
  return jax.lax.optimization_barrier(results)
