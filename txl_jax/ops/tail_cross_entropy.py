"""Cross-entropy where only few rows, different each time, have a target.

The tails of an adaptive softmax are such: most tokens are in none of them.
Shapes must not depend on the data, and no row may be dropped, so rows are
sorted by tail, and a loop takes as many chunks of a fixed number of rows as it
needs: none for a tail without rows, more than usual if all rows are in one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from txl_jax.ops import cross_entropy as lib
from txl_jax.ops.logits import (
  accumulator,
  row_gradients,
  row_losses,
  takes_kernels,
)


class Tail(NamedTuple):
  """A part of the vocabulary.

  Attributes:
    weight_VE: one vector for each word.
    bias_V: one number for each word.
    projection_ED: to the words' width from the rows'; None = the same width.
  """

  weight_VE: jax.Array
  bias_V: jax.Array
  projection_ED: jax.Array | None


def rows_at_once(n_rows: int, low: int, high: int, vocab_size: int) -> int:
  """How many rows of a tail to take at once.

  A chunk costs a pass over the tail's weights and their gradient however few
  its rows are: by the rates of an H200 as much as the products of some 300
  rows. Rows that are missing in it cost as much as others. So it should just
  hold all rows of the tail. Their number is not known before; the guess is a
  Zipf law with a falling tail, frequency of rank r ~ (r + 2.7)**-1.2, rounded
  up. A wrong guess costs time, and nothing else.

  Args:
    n_rows: rows in any tail or none.
    low: rank of the tail's first word by frequency.
    high: one after the rank of its last.
    vocab_size: of all words.
  """

  def rarer(rank: int) -> float:
    return (rank + 2.7) ** -0.2

  share = (rarer(low) - rarer(high)) / (rarer(0) - rarer(vocab_size))
  limit = lib.LOGITS_AT_ONCE // (high - low) // lib.ALIGNMENT * lib.ALIGNMENT
  expected = lib.round_up(int(share * n_rows) + 1)
  return min(expected, max(limit, lib.ALIGNMENT), n_rows)


class _Static(NamedTuple):
  """What is known when it is compiled."""

  rows: tuple[int, ...]
  kernels: tuple[bool, ...]  # whether they take part, for each tail


def tail_cross_entropy(
  rows: tuple[int, ...],
  hidden_XD: jax.Array,
  tails: tuple[Tail, ...],
  tail_X: jax.Array,
  targets_X: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """Negative log-likelihoods [X] within the tail of each row, natural log.

  Args:
    rows: for each tail how many rows are taken at once.
    hidden_XD: rows.
    tails: the parts of the vocabulary.
    tail_X: int, the tail that each row's target is in, from 1; 0 = in none.
    targets_X: int, the target, counted from its tail's first word.
    implementation: as for `cross_entropy`.

  Returns:
    One loss per row, float32 or wider; 0 where the target is in no tail.
  """
  kernels = tuple(
    takes_kernels(implementation, hidden_XD[:n], len(tail.bias_V))
    for n, tail in zip(rows, tails, strict=True)
  )
  static = _Static(rows, kernels)
  return _tail_cross_entropy(static, hidden_XD, tails, tail_X, targets_X)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tail_cross_entropy(static: _Static, *operands: Any) -> jax.Array:
  return _forward(static, *operands)[0]


def _forward(
  static: _Static,
  hidden_XD: jax.Array,
  tails: tuple[Tail, ...],
  tail_X: jax.Array,
  targets_X: jax.Array,
) -> tuple[jax.Array, tuple]:
  order_X, edges = _sort(tail_X, len(tails))
  zeros_X = jnp.zeros_like(hidden_XD[:, 0], accumulator(hidden_XD))
  losses = (zeros_X, zeros_X)
  for i, tail in enumerate(tails):
    step = functools.partial(
      _losses,
      *(static.kernels[i], _cast(tail, hidden_XD), hidden_XD, targets_X),
    )
    losses = _loop(
      step, losses, order_X, edges[i], edges[i + 1], static.rows[i]
    )
  nll_X, lse_X = losses
  return nll_X, (hidden_XD, tails, targets_X, order_X, edges, lse_X)


def _backward(static: _Static, saved: tuple, cotangent_X: jax.Array) -> tuple:
  hidden_XD, tails, targets_X, order_X, edges, lse_X = saved
  wide = accumulator(hidden_XD)
  d_hidden_XD, d_tails = jnp.zeros_like(hidden_XD), []
  for i, tail in enumerate(tails):
    of_chunk = functools.partial(
      _gradients,
      static.kernels[i],
      _cast(tail, hidden_XD),
      (hidden_XD, targets_X, cotangent_X),
      lse_X,
    )
    begin, end, rows = edges[i], edges[i + 1], static.rows[i]
    if static.kernels[i]:
      # One chunk is most often all, and there is nothing yet to add it to. XLA
      # would need room for the logits of this one, and for those of the loop.
      index_C = _chunk(order_X, begin, end, rows)
      d_hidden_CD, d_tail = of_chunk(index_C)
      d_hidden_XD = _put(d_hidden_XD, index_C, d_hidden_CD)
      begin += rows
    else:
      d_tail = jax.tree.map(lambda x: jnp.zeros_like(x, wide), tail)
    step = functools.partial(_add, of_chunk)
    d_hidden_XD, d_tail = _loop(
      step, (d_hidden_XD, d_tail), order_X, begin, end, rows
    )
    d_tails.append(jax.tree.map(lambda d, x: d.astype(x.dtype), d_tail, tail))
  return d_hidden_XD, tuple(d_tails), None, None


_tail_cross_entropy.defvjp(_forward, _backward)


def _losses(
  kernels: bool,
  tail: Tail,
  hidden_XD: jax.Array,
  targets_X: jax.Array,
  losses: tuple[jax.Array, jax.Array],
  index_C: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Writes losses and log-sum-exps of a chunk of rows."""
  narrow_CE = _project(_take(hidden_XD, index_C), tail)
  targets_C = _take(targets_X, index_C)
  found = row_losses(narrow_CE, tail.weight_VE, tail.bias_V, targets_C, kernels)
  nll_X, lse_X = (_put(x, index_C, new_C) for x, new_C in zip(losses, found))
  return nll_X, lse_X


def _gradients(
  kernels: bool,
  tail: Tail,
  per_row: tuple[jax.Array, ...],
  lse_X: jax.Array,
  index_C: jax.Array,
) -> tuple[jax.Array, Tail]:
  """The gradients of a chunk of rows, and theirs for the tail."""
  hidden_CD, targets_C, cotangent_C = (_take(x, index_C) for x in per_row)
  # Missing rows must have no probabilities, for 0 * inf is not 0.
  lse_C = _take(lse_X, index_C, jnp.inf)
  d_hidden_CD, d_weight_VE, d_bias_V = row_gradients(
    _project(hidden_CD, tail),
    tail.weight_VE,
    tail.bias_V,
    targets_C,
    lse_C,
    cotangent_C,
    kernels,
  )
  d_projection_ED = None
  if tail.projection_ED is not None:
    d_projection_ED = jnp.einsum(
      'ce,cd->ed',
      d_hidden_CD,
      hidden_CD,
      preferred_element_type=accumulator(hidden_CD),
    )
    d_hidden_CD = jnp.einsum('ce,ed->cd', d_hidden_CD, tail.projection_ED)
  return d_hidden_CD, Tail(d_weight_VE, d_bias_V, d_projection_ED)


def _add(
  of_chunk: Callable[[jax.Array], tuple[jax.Array, Tail]],
  sums: tuple[jax.Array, Tail],
  index_C: jax.Array,
) -> tuple[jax.Array, Tail]:
  """Writes gradients for a chunk of rows, and adds those for the tail."""
  d_hidden_CD, added = of_chunk(index_C)
  d_hidden_XD, d_tail = sums
  return (
    _put(d_hidden_XD, index_C, d_hidden_CD),
    jax.tree.map(jnp.add, d_tail, added),
  )


def _sort(tail_X: jax.Array, n_tails: int) -> tuple[jax.Array, jax.Array]:
  """Rows by tail, and where in that order each tail begins and ends."""
  n_rows = len(tail_X)
  # One array of different keys is what accelerators sort fastest.
  key_X = tail_X * n_rows + jnp.arange(n_rows, dtype=jnp.int32)
  order_X = jnp.sort(key_X) % n_rows
  below = tail_X[:, None] <= jnp.arange(n_tails + 1)
  return order_X, below.sum(0, dtype=jnp.int32)


def _loop(
  step: Callable[[Any, jax.Array], Any],
  carry: Any,
  order_X: jax.Array,
  begin: jax.Array,
  end: jax.Array,
  rows: int,
) -> Any:
  """Takes a step with each chunk of indices from `begin` to `end`."""

  def next_chunk(state: tuple) -> tuple:
    at, carry = state
    return at + rows, step(carry, _chunk(order_X, at, end, rows))

  def more(state: tuple) -> jax.Array:
    return state[0] < end

  return jax.lax.while_loop(more, next_chunk, (begin, carry))[1]


def _chunk(
  order_X: jax.Array, at: jax.Array, end: jax.Array, rows: int
) -> jax.Array:
  """So many indices from `at` on.

  A chunk that is not full ends with ascending indices of rows that are not
  there: reading them gives zeros, writing them does nothing.
  """
  n_rows, lane_C = len(order_X), jnp.arange(rows, dtype=jnp.int32)
  padded = jnp.pad(order_X, (0, rows))
  index_C = jax.lax.dynamic_slice(padded, (at,), (rows,))
  return jnp.where(at + lane_C < end, index_C, n_rows + lane_C)


def _cast(tail: Tail, hidden_XD: jax.Array) -> Tail:
  dtype, projection_ED = hidden_XD.dtype, tail.projection_ED
  if projection_ED is not None:
    projection_ED = projection_ED.astype(dtype)
  return Tail(tail.weight_VE.astype(dtype), tail.bias_V, projection_ED)


def _project(hidden_CD: jax.Array, tail: Tail) -> jax.Array:
  if tail.projection_ED is None:
    return hidden_CD
  return jnp.einsum('cd,ed->ce', hidden_CD, tail.projection_ED)


def _take(x: jax.Array, index_C: jax.Array, missing: float = 0) -> jax.Array:
  return x.at[index_C].get(
    mode='fill',
    fill_value=missing,
    unique_indices=True,
    indices_are_sorted=True,
  )


def _put(x: jax.Array, index_C: jax.Array, value: jax.Array) -> jax.Array:
  return x.at[index_C].set(
    value, mode='drop', unique_indices=True, indices_are_sorted=True
  )
