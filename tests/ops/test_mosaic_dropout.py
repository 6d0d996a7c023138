"""The inline code of dropout in kernels, thread by thread, by integers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.ops import hopper
from txl_jax.ops.dropout import kept, row_words, weight_kept

TILE, KEY, RATE = hopper.KERNEL_TILE, 5 * hopper.KERNEL_TILE, 0.3
THREADS = 128  # of a group; warp w has rows 16 w to 16 w + 15 of a tile


def _integers(monkeypatch, lib):
  """Lets the code compute below 2^32 instead of writing a program."""

  def wrapped(operation):
    return lambda *x: operation(*x) % 2**32

  operations = dict(
    addi=lambda a, b: a + b,
    muli=lambda a, b: a * b,
    xori=lambda a, b: a ^ b,
    shli=lambda a, b: a << b,
    shrui=lambda a, b: a >> b,
  )
  operations = {name: wrapped(each) for name, each in operations.items()}
  pair = dict(
    extract=lambda x, _, at: x[at[0]],
    from_elements=lambda _, elements: tuple(elements),
  )
  anything = types.SimpleNamespace(
    get=lambda *_: None, get_signless=lambda _: None
  )
  kinds = dict(VectorType=anything, IntegerType=anything)
  for name, fields in dict(arith=operations, vector=pair, ir=kinds).items():
    monkeypatch.setattr(lib, name, types.SimpleNamespace(**fields))
  monkeypatch.setattr(lib, '_number', lambda value: value % 2**32)


def _array(registers):
  flat = types.SimpleNamespace(flat=registers)
  return types.SimpleNamespace(registers=flat)


@pytest.mark.skipif(
  jax.__version_info__ < hopper.JAX_VERSION, reason='needs jax 0.11'
)
@pytest.mark.parametrize('what', ['keys in rows', 'keys', 'hidden states'])
def test_lots_of_all_threads_make_the_mask(what, monkeypatch):
  from txl_jax.ops import mosaic_dropout as lib
  from txl_jax.ops import mosaic_tiles as tiles

  steps = tiles.steps()
  inline = {}
  monkeypatch.setattr(
    lib.plgpu,
    'inline_mgpu',
    lambda **_: lambda f: inline.update(f=f) or (lambda *_: 0),
  )
  by_row = what == 'keys in rows'
  if what == 'hidden states':
    lib.hidden_kept(None, 0, RATE)
  else:
    lib._lots(None, 0, int(not by_row))
  _integers(monkeypatch, lib)
  monkeypatch.setattr(
    tiles, 'fragments', lambda f, is_signed: {step: f(*step) for step in steps}
  )
  word_T = np.asarray(
    row_words(jnp.uint32(9), jnp.arange(TILE, dtype=jnp.uint32))
  )
  words = np.broadcast_to(word_T, (TILE, TILE))
  words = words if by_row else words.T
  lots = np.zeros((TILE, TILE), np.uint32)
  for thread in range(THREADS):
    warp, lane = divmod(thread, 32)
    row, column = 16 * warp + lane // 4, 2 * (lane % 4)
    monkeypatch.setattr(tiles, 'thread_place', lambda at=(row, column): at)
    places = [(row + down, column + right) for down, right in steps]
    own = [tuple(int(words[i, j + n]) for n in range(2)) for i, j in places]
    found = inline['f'](None, _array(own), _array([KEY]))
    for (i, j), step in zip(places, steps):
      lots[i, j : j + 2] = found[step]
  key = jnp.arange(KEY, KEY + TILE, dtype=jnp.uint32)
  rule = kept if what == 'hidden states' else weight_kept
  expected_TK = rule(jnp.asarray(word_T)[:, None], key, RATE)
  expected = expected_TK.T if by_row else expected_TK
  np.testing.assert_array_equal(lots >= int(lib._least(RATE)), expected)
