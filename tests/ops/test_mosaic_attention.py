"""The kernel for Hopper: on one, against XLA; elsewhere what leads up to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from txl_jax.ops import cached_attention as lib
from txl_jax.ops import mosaic_attention, mosaic_forward
from txl_jax.ops.cached_attention import Slots, cached_attention, pad_table

TILE = mosaic_forward.TILE
CASES = {
  # H, B, T, C, slots, rows of the table, where the queries begin
  'a segment': (2, 3, 128, 64, 448, 448, 300),
  'a clamped table': (2, 2, 64, 128, 512, 100, 385),
  'an odd length': (1, 2, 37, 64, 256, 256, 129),
  'one query': (2, 64, 1, 64, 192, 192, 77),
  'nothing before': (1, 1, 70, 64, 128, 128, 0),
}
cases = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def _operands(case, dtype=jnp.bfloat16):
  H, B, T, C, L, W, end = case
  keys = iter(jax.random.split(jax.random.key(0), 9))

  def normal(*shape, scale=1.0):
    return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

  slots = Slots(
    *(normal(H, B, L, C), normal(H, B, L, C)),
    *(pad_table(normal(W, H, C)), jnp.int32(end)),
  )
  biases = normal(H, C, scale=0.3), normal(H, C, scale=0.3)
  # Documents that begin within the segment, or rows that remember less.
  first_BT = jax.random.randint(next(keys), (B, T), 0, end + T)
  first_BT = jnp.minimum(jnp.sort(first_BT), end + jnp.arange(T))
  return normal(B, T, H, C), slots, *biases, first_BT


@cases
def test_tiles_hold_what_is_seen_and_windows_its_distances(case):
  H, B, T, C, L, W, end = case
  _, slots, *_, first_BT = _operands(case)
  n_blocks = -(-T // TILE)
  padded_BT = jnp.pad(first_BT, ((0, 0), (0, n_blocks * TILE - T)), mode='edge')
  n_splits = 3
  tiles = mosaic_forward.tiles_of(padded_BT, slots.end, T, L, n_splits)
  r_HWC = jnp.arange(float(W))[None, ::-1, None] * jnp.ones((1, 1, 8))
  table, start = mosaic_attention._table(r_HWC, L, slots.end)
  assert start % 8 == 0
  distance_W, start = np.asarray(table[0, :, 0]), int(start)
  for b in range(B):
    visits = np.zeros((n_blocks * TILE, L), int)
    for i in range(n_blocks):
      for begin, until in np.asarray(tiles[b, i]):
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
            np.testing.assert_array_equal(
              found[seen], np.minimum(d, W - 1)[seen]
            )
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


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason='needs jax 0.11')
@cases
def test_it_compiles_for_an_h200(case):
  from jax._src.mesh import AbstractDevice, use_abstract_mesh

  q_BTHC, slots, *_, first_BT = _operands(case)
  device = AbstractDevice('NVIDIA H200', None, 'gpu')
  k_HBLC, v_HBLC, r_HWC, end = slots
  with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
    lowered = (
      jax.jit(mosaic_attention.attend)
      .trace(
        q_BTHC, q_BTHC, *slots[:2], slots.r_HWC[:, :-8], slots.end, first_BT
      )
      .lower(lowering_platforms=('cuda',))
    )
  assert 'mosaic_gpu' in lowered.as_text()


def test_where_it_is_used(monkeypatch):
  monkeypatch.setattr(lib, 'on_hopper', lambda: True)
  assert lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4096)
  assert not lib._has_kernel(jnp.float32, (1, 128, 8, 64), 4096)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 48), 4096)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4000)
  assert not lib._has_kernel(jnp.bfloat16, (1, 1, 8, 64), 4096)
  monkeypatch.setattr(lib, 'on_hopper', lambda: False)
  assert not lib._has_kernel(jnp.bfloat16, (1, 128, 8, 64), 4096)


@pytest.mark.skipif(not lib.on_hopper(), reason='needs an NVIDIA Hopper GPU')
@cases
def test_it_is_closer_than_xla_to_float32(case, monkeypatch):
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
