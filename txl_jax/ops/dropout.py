"""Dropout whose mask is a hash of a seed and of each element's place.

A mask is never stored: the backward pass hashes again. Places are global, so
under `jax.jit` a mask does not depend on how an array is divided over devices;
inside `jax.shard_map` they are those of the shard.

The mask of an array: its last axis is counted by `index`, the others together
by `row`, all modulo 2^32, and an element is kept where 16 bits of

  fold(fold(mix(seed), row), index)

are at least rate * 2^16. Two elements share the hash of the first: it has the
lower 16 bits, the other the upper. In hidden states they are neighbours (2 n
and 2 n + 1), in attention weights keys whose numbers differ by 8 alone: a
thread of a kernel for GPUs holds both.
"""

import functools
import math

import jax
import jax.numpy as jnp

# Of the hash: the stride of an index, and what the bits go through.
STRIDE = 0x9E3779B9
MIXING = (16, 0x7FEB352D), (15, 0x846CA68B), (16, None)
# The bit by which two elements that share a hash differ: of hidden states, of
# attention weights.
NEIGHBOUR, PARTNER = 1, 8


def seed_of(key: jax.Array) -> jax.Array:
  """A seed, uint32, from a typed PRNG key."""
  return jax.random.bits(key, dtype=jnp.uint32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
  """Sets a share of the elements to 0 and scales up the others.

  Args:
    x: any floating array.
    seed: uint32, as from `seed_of`.
    rate: the share that is dropped, in [0, 1).
  """
  if rate == 0:
    return x
  return jnp.where(keep_mask(seed, x.shape, rate), _scaled(x, rate), 0)


def _forward(
  x: jax.Array, seed: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
  return dropout(x, seed, rate), seed


def _backward(
  rate: float, seed: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
  return dropout(gradient, seed, rate), None


dropout.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def relu_dropout(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
  """`dropout` of relu(x).

  The gradient passes where the result is above 0: neither the argument nor the
  mask is needed.
  """
  return dropout(jax.nn.relu(x), seed, rate)


def _relu_forward(
  x: jax.Array, seed: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
  out = relu_dropout(x, seed, rate)
  return out, out


def _relu_backward(
  rate: float, out: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
  return jnp.where(out > 0, _scaled(gradient, rate), 0), None


relu_dropout.defvjp(_relu_forward, _relu_backward)


def _scaled(x: jax.Array, rate: float) -> jax.Array:
  """What is kept, scaled up."""
  # In bfloat16 the factor itself would be off by up to 0.4 %.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return (x.astype(wide) * (1 / (1 - rate))).astype(x.dtype)


def keep_mask(
  seed: jax.Array, shape: tuple[int, ...], rate: float
) -> jax.Array:
  """The mask of an array of this shape, True where an element is kept."""
  *lead, n_inner = shape
  word = row_words(seed, row_index(tuple(lead)))
  return kept(word[..., None], jnp.arange(n_inner, dtype=jnp.uint32), rate)


def weight_mask(
  seed: jax.Array, shape: tuple[int, ...], rate: float
) -> jax.Array:
  """The mask of attention weights of this shape, the last axis the keys."""
  *lead, n_keys = shape
  word = row_words(seed, row_index(tuple(lead)))
  key = jnp.arange(n_keys, dtype=jnp.uint32)
  return weight_kept(word[..., None], key, rate)


def row_index(lead: tuple[int, ...]) -> jax.Array:
  """The flat index of each row, uint32, from the axes before the last."""
  index = jnp.zeros(lead, jnp.uint32)
  for axis in range(len(lead)):
    stride = math.prod(lead[axis + 1 :]) % 2**32
    place = jax.lax.broadcasted_iota(jnp.uint32, lead, axis)
    index += place * jnp.uint32(stride)
  return index


def row_words(seed: jax.Array, row: jax.Array) -> jax.Array:
  """The word of each row that is mixed with the index within the row."""
  return _fold(_mix(jnp.asarray(seed, jnp.uint32)), row)


def kept(word: jax.Array, index: jax.Array, rate: float) -> jax.Array:
  """Whether the elements at `index` of rows with these words are kept."""
  return _lot(word, index, NEIGHBOUR) >= jnp.uint32(threshold(rate))


def weight_kept(word: jax.Array, key: jax.Array, rate: float) -> jax.Array:
  """Whether the weights for these keys are kept, of rows with these words."""
  return _lot(word, key, PARTNER) >= jnp.uint32(threshold(rate))


def threshold(rate: float) -> int:
  """The least of 16 bits with which an element is kept."""
  return min(round(rate * 2**16), 2**16 - 1)


def _lot(word: jax.Array, index: jax.Array, shared_bit: int) -> jax.Array:
  """The 16 bits of each element."""
  bit = jnp.uint32(shared_bit)
  bits = _fold(word, index & ~bit)
  return jnp.where(index & bit, bits >> 16, bits & 0xFFFF)


def _fold(word: jax.Array, index: jax.Array) -> jax.Array:
  # By exclusive or: with a sum, rows whose words differ by a small multiple of
  # the constant would have the same mask, displaced.
  return _mix(word ^ (index * jnp.uint32(STRIDE)))


def _mix(x: jax.Array) -> jax.Array:
  """A permutation of uint32 in which each bit depends on all (lowbias32)."""
  for shift, factor in MIXING:
    x = x ^ (x >> shift)
    x = x * jnp.uint32(factor) if factor else x
  return x
