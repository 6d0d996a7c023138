"""What kernels for Hopper are made of (`ops/mosaic_*.py`), for the interpreter.

It knows copies, barriers and loops, but no tensor cores, layouts or inline code
of Mosaic GPU: these are written out here. What remains to be tested on a GPU is
what a primitive does, and not what a kernel makes of them.
"""

import contextlib
import inspect

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import dropout
from txl_jax.ops.dropout import weight_kept
from txl_jax.ops.mosaic_tiles import TILE, Turned


def shared_tile(width, *lead):
  return plgpu.SMEM((*lead, TILE, width), jnp.bfloat16)


def shared_array(*shape):
  return plgpu.SMEM(shape, jnp.bfloat16)


def shared_ring():
  return plgpu.SMEM((TILE, 2 * TILE), jnp.bfloat16)


def zeros(like, dtype=jnp.float32):
  return jnp.zeros(like.shape, dtype)


def rows_of(value):
  return jnp.full((TILE,), value, jnp.float32)


def meet():
  plgpu.commit_smem()  # the nearest that the detector of races knows


def load(source):
  return source[...]


def load_rows(source):
  return source[...]


def in_each_row(source):
  return jnp.broadcast_to(source[...], (TILE, *source.shape))


def places(first):
  return jnp.arange(TILE) + first


def with_products(pairs, then):
  def result(n):
    left, right = pairs[n]
    return _wide(left[...]) @ _wide(right[...]).T

  return then(result)


def add_products(*terms):
  return tuple(
    acc + _left(left) @ _wide(right[...]) for acc, left, right in terms
  )


def sum_of_products(shape, n_steps, step):
  def add(n, acc):
    terms = []
    step(
      n, lambda left, right: terms.append(_wide(left[...]) @ _wide(right[...]))
    )
    return acc + terms[0]

  return lax.fori_loop(0, n_steps, add, jnp.zeros(shape))


def along(source, first, axis):
  line = source[pl.ds(first, TILE)]
  return lax.broadcast_in_dim(line, (TILE, TILE), [axis])


def column_sums(x, of_warps):
  return x.sum(0)


def _left(left):
  if isinstance(left, Turned):
    return _wide(left.tile[...]).T
  return _wide(left[...])


def _wide(x):
  return x.astype(jnp.float32)


def kept(words, key, rate):
  return weight_kept(words[...][:, None], columns(key).astype(jnp.uint32), rate)


def kept_by_key(words, key, rate):
  return weight_kept(words, rows(key).astype(jnp.uint32), rate)


def hidden_kept(words, first, rate):
  return dropout.kept(words, columns(first).astype(jnp.uint32), rate)


def rows(first):
  return _iota(0) + first


def columns(first):
  return _iota(1) + first


def _iota(axis):
  return lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis)


def keep(ring, half, columns):
  for n in range(2):

    @pl.when(half == n)
    def _(n=n):
      ring[:, pl.ds(n * TILE, TILE)] = columns.astype(jnp.bfloat16)


def _slant(turn):
  """The column of the ring that holds each element of a tile."""
  return (TILE - 1 - _iota(0) + _iota(1) + turn) % 128


def slanted(ring, turn):
  return jnp.take_along_axis(ring[...], _slant(turn), axis=1)


def turned(ring):
  return slanted(ring, 0).T


def folded(source, by_row=False):
  key = (_iota(0) + _iota(1) + 1) % TILE
  if by_row:
    return jnp.take_along_axis(source[...], key, axis=0)
  return jnp.take_along_axis(source[...].T, key, axis=1)


def joined(left, right):
  return jnp.where(_iota(0) + _iota(1) >= TILE - 1, left, right)


@contextlib.contextmanager
def looking_for_races(*kernels):
  """Interprets these cached kernels, and prints races that it detects."""

  def forget():
    for kernel in kernels:
      kernel.cache_clear()

  forget()
  with plgpu.force_gpu_interpret_mode(
    plgpu.InterpretGPUParams(detect_races=True)
  ):
    yield
  forget()


def install(monkeypatch: object, *modules: object) -> None:
  """Puts them in place of those of these modules."""
  for name, value in globals().items():
    if inspect.isfunction(value) and value.__module__ == __name__:
      for module in modules:
        if hasattr(module, name):
          monkeypatch.setattr(module, name, value)
