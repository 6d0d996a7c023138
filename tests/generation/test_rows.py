"""Rows of one batch: prompts, memories and ends of different lengths."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import txl_jax
from txl_jax.generation.prompts import read_pieces, read_prompt

CONFIG = txl_jax.ModelConfig(
  vocab_size=12,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=9,
  init_std=0.5,
)
KEYS_B = jax.random.split(jax.random.key(7), 3)
PROMPT_BT = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 0, 0, 0, 0]])
LENGTHS_B = np.array([5, 3, 1])
LENGTH, STOP = 9, (5, 11)
PAST_BT = np.random.default_rng(0).integers(0, 11, (3, 9))


@functools.cache
def _params() -> dict:
  return txl_jax.init_params(CONFIG, jax.random.key(0))


def _memory(kind: str, rows=slice(None)) -> txl_jax.ProjectedMemory:
  """Of a text, of two tokens of it, or of nothing."""
  past_BT = PAST_BT[rows]
  memory = txl_jax.init_memory(CONFIG, len(past_BT))
  memory = txl_jax.project_memory(CONFIG, _params(), memory)
  n_tokens = {'full': 9, 'partly': 2, 'empty': 0}[kind]
  if n_tokens:
    _, memory = txl_jax.log_probs(
      CONFIG, _params(), past_BT[:, :n_tokens], memory
    )
  return memory


def _generate(prompt_BT, memory, keys_B=KEYS_B, **options):
  return txl_jax.generate_with_log_probs(
    CONFIG,
    _params(),
    jnp.asarray(prompt_BT),
    memory,
    key=keys_B,
    temperature=1.3,
    **{'length': LENGTH, 'boundary': 11, 'stop': STOP, **options},
  )


def _same(together, alone, row: int) -> None:
  """A row has the text, log-probabilities and memory of one by itself."""
  assert together.tokens_BL[row].tolist() == alone.tokens_BL[0].tolist()
  assert together.lengths_B[row] == alone.lengths_B[0]
  np.testing.assert_allclose(
    together.logp_BL[row], alone.logp_BL[0], rtol=1e-4, atol=1e-5
  )
  _same_memory(together.memory, alone.memory, row)


def _same_memory(together, alone, row: int) -> None:
  n_valid = int(alone.valid_B[0])
  assert together.valid_B[row] == n_valid
  begin = together.length - n_valid
  for found, expected in zip(together.layers, alone.layers):
    np.testing.assert_allclose(
      found[:, row, begin:], expected[:, 0, begin:], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('kind', ['empty', 'partly', 'full'])
def test_ragged_prompts_equal_prompts_alone(kind):
  together = _generate(PROMPT_BT, _memory(kind), prompt_lengths_B=LENGTHS_B)
  for row, length in enumerate(LENGTHS_B):
    alone = _generate(
      PROMPT_BT[row : row + 1, :length],
      _memory(kind, slice(row, row + 1)),
      KEYS_B[row : row + 1],
    )
    _same(together, alone, row)
  assert len(set(map(tuple, together.tokens_BL.tolist()))) == 3
  n_past = {'full': 9, 'partly': 2, 'empty': 0}[kind]
  # All but the last token: a stop token that begins documents is not read.
  n_read_B = n_past + LENGTHS_B + together.lengths_B - 1
  assert together.memory.valid_B.tolist() == np.minimum(n_read_B, 9).tolist()


def test_padding_may_be_anything():
  options = {'prompt_lengths_B': LENGTHS_B}
  zeros = _generate(PROMPT_BT, _memory('full'), **options)
  column_T = np.arange(5)
  for padding in (11, -1):
    other_BT = np.where(column_T < LENGTHS_B[:, None], PROMPT_BT, padding)
    other = _generate(other_BT, _memory('full'), **options)
    assert other.tokens_BL.tolist() == zeros.tokens_BL.tolist()
    assert other.memory.valid_B.tolist() == zeros.memory.valid_B.tolist()


def test_a_document_may_begin_in_any_row():
  prompt_BT = np.array([[1, 2, 11, 4, 5], [11, 7, 8, 11, 11], [9, 0, 0, 0, 0]])
  memory = _memory('full')
  read = jax.jit(read_prompt, static_argnums=(0, 5))
  hidden_BD, after = read(CONFIG, _params(), prompt_BT, LENGTHS_B, memory, 11)
  assert after.valid_B.tolist() == [3, 3, 9]
  for row, length in enumerate(LENGTHS_B):
    alone_1D, alone = read(
      CONFIG,
      _params(),
      prompt_BT[row : row + 1, :length],
      None,
      _memory('full', slice(row, row + 1)),
      11,
    )
    np.testing.assert_allclose(
      hidden_BD[row], alone_1D[0], rtol=1e-4, atol=1e-5
    )
    _same_memory(after, alone, row)


def test_long_texts_are_read_in_pieces_as_if_each_were_alone():
  rng = np.random.default_rng(1)
  texts = [rng.integers(0, 12, n) for n in (23, 9, 2)]
  read = functools.partial(read_pieces, CONFIG, _params())
  *last, memory = read(texts, _memory('empty'), 11)
  assert [len(x[0]) for x in last[:1]] == [9]
  for row, text in enumerate(texts):
    memory_1 = _memory('empty', slice(row, row + 1))
    piece_1T, lengths_1, alone = read([text], memory_1, 11)
    n = int(lengths_1[0])
    assert piece_1T[0, :n].tolist() == text[-n:].tolist()
    assert last[0][row, :n].tolist() == text[-n:].tolist()
    assert last[1][row] == n
    _same_memory(memory, alone, row)


# Ends -------------------------------------------------------------------------


def test_a_row_ends_at_a_stop_token():
  options = {'prompt_lengths_B': LENGTHS_B}
  whole = _generate(PROMPT_BT, _memory('empty'), stop=(), **options)
  found = _generate(PROMPT_BT, _memory('empty'), **options)
  ends = []
  for row, text in enumerate(whole.tokens_BL.tolist()):
    places = [i for i, token in enumerate(text) if token in STOP]
    n = places[0] + 1 if places else LENGTH
    ends.append(n)
    assert found.lengths_B[row] == n
    repeated = text[n - 1 : n] * (LENGTH - n)
    assert found.tokens_BL[row].tolist() == text[:n] + repeated
    np.testing.assert_allclose(
      found.logp_BL[row, :n], whole.logp_BL[row, :n], rtol=1e-5
    )
    assert (found.logp_BL[row, n:] == 0).all()
  assert 1 < min(ends) < LENGTH and len(set(ends)) > 1
  # What a row remembers that has ended before the others.
  row = ends.index(min(ends))
  text_1T = np.append(PROMPT_BT[row, : LENGTHS_B[row]], found.tokens_BL[row])
  text_1T = text_1T[None, : LENGTHS_B[row] + ends[row] - 1]
  memory = _memory('empty', slice(row, row + 1))
  _, alone = txl_jax.log_probs(CONFIG, _params(), text_1T, memory)
  assert text_1T.size <= 9
  _same_memory(found.memory, alone, row)


def test_it_ends_when_all_rows_have_ended():
  began = time.monotonic()
  found = _generate(
    PROMPT_BT, _memory('full'), stop=tuple(range(12)), length=10**6
  )
  assert found.lengths_B.tolist() == [1, 1, 1]
  assert found.tokens_BL.shape == (3, 10**6)
  # A million tokens would take minutes, even at a tenth of a millisecond each.
  assert time.monotonic() - began < 60


# Devices ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_seed_gives_the_same_text_on_one_and_on_eight_devices():
  prompt_BT = np.random.default_rng(2).integers(0, 12, (8, 5))
  lengths_B = np.array([5, 4, 3, 2, 1, 5, 4, 3])
  memory = txl_jax.init_memory(CONFIG, 8)
  memory = txl_jax.project_memory(CONFIG, _params(), memory)
  texts = []
  for n_devices in (1, 8):
    mesh = jax.make_mesh(
      (n_devices,),
      ('rows',),
      (jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:n_devices],
    )

    def put(x, *axes, mesh=mesh):
      return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    tokens_BL, after = txl_jax.generate(
      CONFIG,
      put(_params()),
      put(prompt_BT, 'rows'),
      txl_jax.ProjectedMemory(
        put(memory.keys_NBMHC, None, 'rows'),
        put(memory.values_NBMHC, None, 'rows'),
        put(memory.valid_B, 'rows'),
      ),
      length=40,
      key=put(jax.random.key(3)),
      prompt_lengths_B=put(lengths_B, 'rows'),
      stop=(4,),
    )
    assert len(after.keys_NBMHC.sharding.device_set) == n_devices
    texts.append(tokens_BL.tolist())
  assert texts[0] == texts[1]
  assert len(set(map(tuple, texts[0]))) > 4
