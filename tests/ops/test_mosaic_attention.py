"""The kernel for Hopper: on one, against XLA; elsewhere what leads up to it."""

import interpreted_tiles
import jax
import jax.numpy as jnp
import kernel_checks as checks
import numpy as np
import pytest

from txl_jax.ops import cached_attention as lib
from txl_jax.ops import (
  mosaic_attention,
  mosaic_decoding,
  mosaic_ranges,
  mosaic_tiles,
)
from txl_jax.ops.cached_attention import Slots, cached_attention, pad_table

TILE = mosaic_tiles.TILE
CASES = {
  # H, B, T, C, slots, where the queries begin
  'a segment': (2, 3, 128, 64, 448, 300),
  'wide heads': (2, 2, 64, 128, 512, 385),
  'an odd length': (1, 2, 37, 64, 256, 129),
  'nothing before': (1, 1, 70, 64, 128, 0),
}
ALONE = {
  'one query': (2, 3, 1, 64, 192, 77),
  'one query, as many rows as blocks': (4, 70, 1, 64, 128, 127),
  'one query, wide heads': (1, 2, 1, 128, 640, 638),
  'one query, nothing before': (1, 1, 1, 64, 128, 0),
}
cases = pytest.mark.parametrize('case', CASES.values(), ids=CASES)
alone = pytest.mark.parametrize('case', ALONE.values(), ids=ALONE)
every_case = pytest.mark.parametrize(
  'case', (CASES | ALONE).values(), ids=CASES | ALONE
)


def _operands(case, dtype=jnp.bfloat16):
  H, B, T, C, L, end = case
  keys = iter(jax.random.split(jax.random.key(0), 9))

  def normal(*shape, scale=1.0):
    return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

  slots = Slots(
    *(normal(H, B, L, C), normal(H, B, L, C)),
    *(pad_table(normal(L, H, C)), jnp.int32(end)),
  )
  biases = normal(H, C, scale=0.3), normal(H, C, scale=0.3)
  # Documents that begin within the segment, or rows that remember less.
  first_BT = jax.random.randint(next(keys), (B, T), 0, end + T)
  first_BT = jnp.minimum(jnp.sort(first_BT), end + jnp.arange(T))
  return normal(B, T, H, C), slots, *biases, first_BT


@cases
def test_tiles_hold_what_is_seen_and_windows_its_distances(case):
  H, B, T, C, L, end = case
  _, slots, *_, first_BT = _operands(case)
  n_blocks = -(-T // TILE)
  padded_BT = jnp.pad(first_BT, ((0, 0), (0, n_blocks * TILE - T)), mode='edge')
  n_splits = 3
  tiles = mosaic_ranges.tiles_of(padded_BT, slots.end, T, L, n_splits)
  r_WHC = jnp.arange(float(L))[::-1, None, None] * jnp.ones((1, 1, 8))
  table, start = mosaic_attention._table(pad_table(r_WHC), L, slots.end)
  assert start % 8 == 0
  distance_W, start = np.asarray(table[0, :, 0]), int(start)
  for b in range(B):
    visits = np.zeros((n_blocks * TILE, L), int)
    for i in range(n_blocks):
      for begin, until, whole in np.asarray(tiles[b, i]):
        block = padded_BT[b, i * TILE :][:TILE]
        assert (whole - 1) * TILE < block.max() <= whole * TILE
        assert 0 <= begin <= until <= L // TILE or begin == until
        for tile in range(begin, until):
          queries, keys = i * TILE + np.arange(TILE), tile * TILE
          visits[queries, keys : keys + TILE] += 1
          low = start + keys - i * TILE
          window = distance_W[low : low + 2 * TILE]
          assert len(window) == 2 * TILE
          for a in range(min(TILE, T - i * TILE)):
            found = window[TILE - 1 - a :][:TILE]
            d = end + queries[a] - (keys + np.arange(TILE))
            seen = d >= 0
            np.testing.assert_array_equal(found[seen], d[seen])
    for t in range(T):
      assert (visits[t, int(first_BT[b, t]) : end + t + 1] == 1).all()


def test_parts_come_together():
  random = np.random.default_rng(0)
  scores, values = random.normal(size=(30, 8)), random.normal(size=(8, 4))
  whole = np.exp2(scores)
  whole = whole @ values / whole.sum(-1, keepdims=True)
  outs, lses = [], []
  for part in (slice(0, 3), slice(3, 3), slice(3, 8)):
    weight = np.exp2(scores[:, part])
    total = np.maximum(weight.sum(-1), 1e-30)
    outs.append(weight @ values[part] / total[:, None])
    lses.append(np.log2(total) if weight.size else np.full(30, -1e30))
  out_SBTHC = jnp.stack(outs)[:, None, :, None]
  lse_SHBT = jnp.stack(lses)[:, None, None]
  found_BTHC = mosaic_attention._together(out_SBTHC, lse_SHBT)
  np.testing.assert_allclose(found_BTHC[0, :, 0], whole, rtol=1e-5)


@checks.new_enough
@every_case
def test_it_compiles_for_an_h200(case):
  q_BTHC, slots, *_, v_bias_HC, first_BT = _operands(case)
  alone = q_BTHC.shape[1] == 1
  attend = mosaic_attention.attend_one if alone else mosaic_attention.attend
  other = q_BTHC if alone else v_bias_HC
  operands = q_BTHC, other, *slots, first_BT
  assert 'mosaic_gpu' in checks.text_for_an_h200(attend, *operands)


def test_where_it_is_used(monkeypatch):
  monkeypatch.setattr(lib, 'on_hopper', lambda: True)
  assert lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4096)
  assert not lib._has_kernel(jnp.float32, (1, 128, 8, 64), 4096)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 48), 4096)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4000)
  assert not lib._has_kernel(jnp.bfloat16, (1, 2, 8, 64), 4096)
  assert lib._has_kernel(jnp.bfloat16, (1, 1, 8, 64), 4096)
  monkeypatch.setattr(lib, 'on_hopper', lambda: False)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4096)


@pytest.fixture
def interpreted(monkeypatch):
  import jax.experimental.pallas.mosaic_gpu as plgpu

  def forget():
    mosaic_decoding._kernel.cache_clear()
    mosaic_attention.attend_one.clear_cache()

  interpreted_tiles.install(monkeypatch, mosaic_tiles)
  forget()
  with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
    yield
  forget()


@checks.new_enough
@alone
def test_one_query_interpreted(case, interpreted, monkeypatch):
  _assert_closer_than_xla(case, monkeypatch)


def test_queries_without_a_first_key_attend_to_nothing():
  q_B2HC, slots, *biases, first_B2 = _operands((2, 3, 2, 64, 64, 20))
  both = cached_attention(q_B2HC, slots, *biases, first_B2[:, :1])
  alone = cached_attention(q_B2HC[:, :1], slots, *biases, first_B2[:, :1])
  np.testing.assert_array_equal(both[:, :1], alone)
  assert not both[:, 1].any() and alone.any()


@checks.needs_hopper
@every_case
def test_it_is_closer_than_xla_to_float32(case, monkeypatch):
  _assert_closer_than_xla(case, monkeypatch)


def _assert_closer_than_xla(case, monkeypatch):
  operands = _operands(case)

  def attend(kernel, operands):
    monkeypatch.setattr(lib, '_has_kernel', lambda *_: kernel)
    with jax.default_matmul_precision('highest'):
      return jax.jit(lambda *x: cached_attention(*x))(*operands)

  wide = jax.tree.map(
    lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, operands
  )
  expected = attend(False, wide)
  found, by_xla = attend(True, operands), attend(False, operands)

  def error(x):
    return np.linalg.norm(x.astype(jnp.float32) - expected)

  assert error(found) <= 1.1 * error(by_xla)
