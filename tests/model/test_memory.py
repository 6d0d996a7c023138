"""The memory: what is visible, what is kept, what is cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.model import memory as memory_lib

B = 6
SIZES = [(1, 0), (4, 8), (5, 3)]  # (T, M)


def _visible(
  position: int, j: int, valid: int, starts: list[int], span: int | None, M: int
) -> bool:
  """Whether the token at `position` of the segment may see key j."""
  if j > M + position:  # It has not been read yet.
    return False
  if j < M - valid:  # A place of the memory that has never been filled.
    return False
  if span is not None and M + position - j >= span:
    return False
  return not any(s <= position and j < M + s for s in starts)


def _random_rows(T: int, M: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """How much memory is filled, and document starts, for each row."""
  random = np.random.default_rng(seed)
  valid_B = random.integers(0, M + 1, B).astype(np.int32)
  valid_B[:2] = 0, M
  starts_BT = random.random((B, T)) < 0.3
  starts_BT[2] = False
  starts_BT[3, -1] = True
  return valid_B, starts_BT


@pytest.mark.parametrize(('T', 'M'), SIZES)
def test_visibility_is_one_integer_per_query(T, M):
  valid_B, starts_BT = _random_rows(T, M, seed=T + M)
  spans = [None, 1, (M + 2) // 2, M + 1]
  for span in spans:
    for given in (starts_BT, None):
      first_BT = memory_lib.visibility(
        jnp.asarray(valid_B),
        None if given is None else jnp.asarray(given),
        memory_length=M,
        segment_length=T,
        attention_span=span,
      )
      first_BT = np.asarray(first_BT)
      assert first_BT.dtype == np.int32
      for b, i in np.ndindex(B, T):
        starts = [] if given is None else np.flatnonzero(given[b]).tolist()
        expected = [
          _visible(i, j, valid_B[b], starts, span, M) for j in range(M + T)
        ]
        found = [first_BT[b, i] <= j <= M + i for j in range(M + T)]
        assert found == expected, (b, i, span)


def test_a_full_memory_shows_each_query_exactly_the_span():
  T, M, span = 4, 8, 6
  first_BT = memory_lib.visibility(
    jnp.full(1, M),
    None,
    memory_length=M,
    segment_length=T,
    attention_span=span,
  )
  np.testing.assert_array_equal(M + np.arange(T) + 1 - first_BT[0], span)


@pytest.mark.parametrize(('T', 'M'), SIZES)
@pytest.mark.parametrize('with_starts', [False, True])
def test_valid_after_counts_what_the_next_token_may_see(T, M, with_starts):
  valid_B, starts_BT = _random_rows(T, M, seed=2 * T + M)
  found_B = np.asarray(
    memory_lib.valid_after(
      jnp.asarray(valid_B),
      jnp.asarray(starts_BT) if with_starts else None,
      memory_length=M,
      segment_length=T,
    )
  )
  assert found_B.dtype == np.int32
  for b in range(B):
    starts = np.flatnonzero(starts_BT[b]).tolist() if with_starts else []
    # The last M of the M + T positions remain.
    kept = range(T, M + T)
    expected = sum(_visible(T, j, valid_B[b], starts, None, M) for j in kept)
    assert found_B[b] == expected


def test_last_start():
  starts_BT = jnp.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]])
  expected = [[-1, 1, 1, 3, 3], [-1] * 5, [0, 0, 0, 0, 4]]
  last_BT = memory_lib.last_start(starts_BT.astype(bool))
  np.testing.assert_array_equal(last_BT, expected)


@pytest.mark.parametrize(('T', 'M'), [*SIZES, (4, 4)])
def test_push_keeps_the_last_positions_in_order(T, M):
  # The number of a position in the text, as [N, B, M or T, D].
  time_K = np.arange(M + T)
  both = np.broadcast_to(time_K[None, None, :, None], (2, B, M + T, 3))
  both = (both + 100 * np.arange(B)[:, None, None]).astype(np.float32)
  memory, new = jnp.asarray(both[:, :, :M]), jnp.asarray(both[:, :, M:])
  pushed = memory_lib.push(memory, new)
  assert pushed.shape == (2, B, M, 3)
  expected_BM = [[100 * b + t for t in range(T, M + T)] for b in range(B)]
  for n, d in np.ndindex(2, 3):
    np.testing.assert_array_equal(
      pushed[n, :, :, d], np.reshape(expected_BM, (B, M))
    )


def test_push_keeps_the_dtype_of_the_memory():
  pushed = memory_lib.push(
    jnp.zeros((1, 1, 2, 3), jnp.bfloat16), jnp.ones((1, 1, 1, 3), jnp.float32)
  )
  assert pushed.dtype == jnp.bfloat16


def test_no_gradient_passes_a_push():
  def loss(memory_NBMD, new_NBTD):
    return jnp.square(memory_lib.push(memory_NBMD, new_NBTD)).sum()

  arguments = jnp.ones((1, 2, 5, 3)), jnp.ones((1, 2, 4, 3))
  assert loss(*arguments) > 0
  for gradient in jax.grad(loss, (0, 1))(*arguments):
    assert (gradient == 0).all()


@pytest.mark.parametrize('start', ['empty', 'zeros'])
@pytest.mark.parametrize('length', [None, 0, 7])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_init_memory(start, length, dtype):
  config = txl_jax.ModelConfig(
    vocab_size=9,
    n_layers=3,
    d_model=4,
    memory_length=5,
    memory_start=start,
    dtype=dtype,
  )
  memory = txl_jax.init_memory(config, 2, length)
  M = 5 if length is None else length
  assert memory.length == M
  assert memory.hidden_NBMD.shape == (3, 2, M, 4)
  assert memory.hidden_NBMD.dtype == dtype
  assert (memory.hidden_NBMD == 0).all()
  assert memory.valid_B.dtype == np.int32
  assert memory.valid_B.tolist() == [M if start == 'zeros' else 0] * 2
