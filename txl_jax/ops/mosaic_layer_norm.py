"""A sublayer's end on Hopper: bias, dropout, residual connection, layer norm.

It is bound by memory, so what counts is that each array goes through once: one
kernel for the forward pass, and one for the backward pass, which reads the sum
that was normalised and computes its statistics again. A block takes four rows
at a time, one a warp, while copies bring those that come next.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from txl_jax.ops import dropout, mosaic_rows
from txl_jax.ops import mosaic_tiles as tiles
from txl_jax.ops.hopper import MULTIPROCESSORS, NORM_WIDEST
from txl_jax.ops.mosaic_rows import ROWS, in_all, mean

# How often rows are fetched ahead.
_STAGES = 3
# Blocks of a multiprocessor, for columns up to so many: wide rows take all
# registers in the backward pass.
_BLOCKS = {512: 3, NORM_WIDEST: 2}
_IN_BOUNDS = plgpu.OOBFillMode.PROMISE_IN_BOUNDS
# Arrays on the device: what each kernel reads, and what it writes.
_FORWARD = ('x', 'branch', 'bias', 'scale', 'shift', 'words', 'out', 'total')
_BACKWARD = ('total', 'scale', 'words', 'dx', 'dbranch', 'sums')


def forward(
  x_RD: jax.Array,
  branch_RD: jax.Array,
  bias_D: jax.Array,
  scale_D: jax.Array,
  shift_D: jax.Array,
  words_R: jax.Array,
  *,
  rate: float,
  epsilon: float,
) -> tuple[jax.Array, jax.Array]:
  """layer_norm(t) and t = x + dropout(branch + bias), bfloat16 [R, D].

  What is normalised is the sum before it is rounded.

  Args:
    x_RD: bfloat16; R a multiple of 4, D of 128 and at most 1024.
    branch_RD: bfloat16.
    bias_D: float32.
    scale_D: float32, the gain.
    shift_D: float32.
    words_R: of dropout, for each row, from `dropout.row_words`.
    rate: of dropout.
    epsilon: added to the variance.
  """
  R, D = x_RD.shape
  kernel = _forward(R, D, rate, epsilon)
  return kernel(x_RD, branch_RD, bias_D, scale_D, shift_D, words_R)


def backward(
  gradients: tuple[jax.Array, ...],
  total_RD: jax.Array,
  scale_D: jax.Array,
  words_R: jax.Array,
  *,
  rate: float,
  epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The gradients, given those of all uses of the result.

  Args:
    gradients: of each, bfloat16 [R, D]; R a multiple of 4, D of 128.
    total_RD: t, from `forward`.
    scale_D: float32.
    words_R: as in `forward`.
    rate: of dropout.
    epsilon: added to the variance.

  Returns:
    Those of x and of the branch, bfloat16 [R, D], and parts of the sums of
    those of scale, shift and bias, float32 [G, 3, D].
  """
  R, D = total_RD.shape
  kernel = _backward(R, D, len(gradients), rate, epsilon)
  return kernel(*gradients, total_RD, scale_D, words_R)


class _Static(NamedTuple):
  """What is known when a kernel is compiled."""

  fetched: tuple[str, ...]  # arrays whose rows are, the results in their place
  n_groups: int  # of rows
  n_blocks: int
  rate: float
  epsilon: float


def _divided(R: int, D: int) -> tuple[int, int]:
  """Groups of rows, and blocks that go through them."""
  each = next(n for width, n in _BLOCKS.items() if D <= width)
  return R // ROWS, min(each * MULTIPROCESSORS, R // ROWS)


@functools.cache
def _forward(R: int, D: int, rate: float, epsilon: float) -> Any:
  static = _Static(('x', 'branch'), *_divided(R, D), rate, epsilon)
  like = jax.ShapeDtypeStruct((R, D), jnp.bfloat16)
  return _kernel(_Forward.body(static, _FORWARD), static, D, [like] * 2)


@functools.cache
def _backward(R: int, D: int, n_uses: int, rate: float, epsilon: float) -> Any:
  uses = [f'use_{n}' for n in range(n_uses)]
  static = _Static((*uses, 'total'), *_divided(R, D), rate, epsilon)
  like = jax.ShapeDtypeStruct((R, D), jnp.bfloat16)
  sums = jax.ShapeDtypeStruct((static.n_blocks, 3, D), jnp.float32)
  room = dict(of_warps=plgpu.SMEM((ROWS, D), jnp.float32))
  room |= dict(sums=plgpu.SMEM((3, D), jnp.float32))
  body = _Backward.body(static, (*uses, *_BACKWARD))
  return _kernel(body, static, D, [like, like, sums], **room)


def _kernel(
  body: Any, static: _Static, D: int, out_type: list, **room: Any
) -> Any:
  fetched = static.fetched
  room |= dict.fromkeys(fetched, plgpu.SMEM((_STAGES, ROWS, D), jnp.bfloat16))
  loaded = plgpu.Barrier(num_arrivals=len(fetched), num_barriers=_STAGES)
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=dict(loaded=loaded, **room),
    grid=(static.n_blocks,),
    grid_names=('block',),
    compiler_params=tiles.PARAMS,
  )


class _Block(tiles.Block):
  """A block of either kernel, which goes through the rows with all others.

  Attributes:
    results: the arrays that are written.
  """

  results = ()

  def __init__(self, *given: Any):
    super().__init__(*given)
    self._at, static = lax.axis_index('block'), self._static
    left = static.n_groups - 1 - self._at
    self._n_steps = lax.div(left, static.n_blocks) + 1

  def run(self) -> None:
    """Everything."""
    for n in range(_STAGES):
      self._fetch(n)
    state = self._words(0), self._begin()
    _, sums = lax.fori_loop(0, self._n_steps, self._step, state)
    self._finish(sums)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  def _place(self, n: Any) -> Any:
    """The rows of a step."""
    return pl.ds((self._at + n * self._static.n_blocks) * ROWS, ROWS)

  def _fetch(self, n: Any) -> None:
    """Begins to fetch the rows of a step, if there is one."""

    @pl.when(n < self._n_steps)
    def _():
      stage = lax.rem(n, _STAGES)
      for name in self._static.fetched:
        source = getattr(self._device, name).at[self._place(n)]
        target = getattr(self._shared, name).at[stage]
        loaded = self._shared.loaded.at[stage]
        # Else at most 256 columns would be copied at once.
        plgpu.copy_gmem_to_smem(source, target, loaded, oob_mode=_IN_BOUNDS)

  def _words(self, n: Any) -> jax.Array:
    """Dropout's of a step, or of the first if there is none."""
    n = jnp.where(n < self._n_steps, n, 0)
    return mosaic_rows.read(self._device.words.at[self._place(n)], 1)

  def _step(self, n: Any, state: tuple) -> tuple:
    """Takes in the rows of a step, and writes what comes out."""
    words, sums = state
    later = self._words(n + 1)
    stage = lax.rem(n, _STAGES)
    plgpu.barrier_wait(self._shared.loaded.at[stage])
    fetched = [getattr(self._shared, x).at[stage] for x in self._static.fetched]
    arrays = map(mosaic_rows.wide, fetched)
    results, sums = self._compute(arrays, words, sums)
    # What the step before has written is on its way, and its room free.
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    tiles.meet()
    pl.when(n > 0)(lambda: self._fetch(n + _STAGES - 1))
    for room, result in zip(fetched, results):
      room[...] = result.astype(jnp.bfloat16)
    plgpu.commit_smem()
    for room, name in zip(fetched, self.results):
      target = getattr(self._device, name).at[self._place(n)]
      plgpu.copy_smem_to_gmem(room, target)
    return later, sums

  def _begin(self) -> tuple[jax.Array, ...]:
    """What is summed up over the steps, before the first."""
    return ()

  def _compute(self, arrays: Any, words: jax.Array, sums: tuple) -> tuple:
    """What is made of the rows that were fetched, and the sums."""
    raise NotImplementedError

  def _finish(self, sums: tuple) -> None:
    """Writes the sums."""

  def _line(self, name: str) -> jax.Array:
    """Numbers of an array [D], in each of the rows.

    Read again in each step: there are registers for the sums alone.
    """
    return mosaic_rows.line(getattr(self._device, name))

  def _dropped(self, x: jax.Array, words: jax.Array) -> jax.Array:
    rate = self._static.rate
    if not rate:
      return x
    keep = dropout.kept(in_all(words, x), mosaic_rows.columns(x), rate)
    return jnp.where(keep, x * (1 / (1 - rate)), 0.0)

  def _normed(self, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Without gain and shift, and one over the deviation."""
    centred = total - in_all(mean(total), total)
    variance = mean(centred * centred)
    inverse = in_all(lax.rsqrt(variance + self._static.epsilon), total)
    return centred * inverse, inverse


class _Forward(_Block):
  """Adds, and normalises the sum."""

  results = ('out', 'total')

  def _compute(self, arrays: Any, words: jax.Array, sums: tuple) -> tuple:
    x, branch = arrays
    branch = self._dropped(branch + self._line('bias'), words)
    total = x + branch
    normed, _ = self._normed(total)
    out = normed * self._line('scale') + self._line('shift')
    return (out, total), sums


class _Backward(_Block):
  """The gradients of both terms of the sum, and sums over rows."""

  results = ('dx', 'dbranch')

  def _begin(self) -> tuple[jax.Array, ...]:
    return (mosaic_rows.zeros(self._device.total.shape[1]),) * 3

  def _compute(self, arrays: Any, words: jax.Array, sums: tuple) -> tuple:
    first, *others, total = arrays
    gradient = sum(others, first)
    normed, inverse = self._normed(total)
    dnormed = gradient * self._line('scale')
    along = in_all(mean(dnormed * normed), total)
    dx = (dnormed - in_all(mean(dnormed), total) - normed * along) * inverse
    dbranch = self._dropped(dx, words)
    terms = gradient * normed, gradient, dbranch
    return (dx, dbranch), tuple(map(jnp.add, sums, terms))

  def _finish(self, sums: tuple) -> None:
    shared = self._shared
    for n, of_warps in enumerate(sums):
      shared.of_warps[...] = of_warps
      tiles.meet()
      rows = [shared.of_warps[row] for row in range(ROWS)]
      shared.sums[n] = sum(rows[1:], rows[0])
      tiles.meet()
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(shared.sums, self._device.sums.at[self._at])
