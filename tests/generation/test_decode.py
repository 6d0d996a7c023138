"""Decoding equals scoring, row by row, with either kind of memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError

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
KEY = jax.random.key(7)


@functools.cache
def _params() -> dict:
  return txl_jax.init_params(CONFIG, jax.random.key(0))


def _generate(prompt_BT, memory=None, **options):
  prompt_BT = jnp.asarray(prompt_BT)
  if memory is None:
    memory = txl_jax.init_memory(CONFIG, len(prompt_BT))
  options = {'length': 6, 'key': KEY, **options}
  tokens_BL, memory = txl_jax.generate(
    CONFIG, _params(), prompt_BT, memory, **options
  )
  return tokens_BL.tolist(), memory


PROMPT_BT = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 0, 0, 0, 0]])
LENGTHS_B = np.array([5, 3, 1])


def test_greedy_equals_the_most_likely_token_step_by_step():
  tokens_BL, _ = _generate(PROMPT_BT[:1], temperature=0)
  memory, tokens_BT, expected = (
    txl_jax.init_memory(CONFIG, 1),
    jnp.asarray(PROMPT_BT[:1]),
    [],
  )
  for _ in range(6):
    logp_BTV, memory = txl_jax.log_probs(CONFIG, _params(), tokens_BT, memory)
    tokens_BT = logp_BTV[:, -1:].argmax(-1)
    expected.append(int(tokens_BT[0, 0]))
  assert tokens_BL[0] == expected
  assert len(set(expected)) > 1


def test_a_row_does_not_depend_on_the_others():
  one, _ = _generate(PROMPT_BT)
  other_BT = np.where([[False], [True], [False]], 11, PROMPT_BT)
  other, _ = _generate(other_BT)
  assert one[0] == other[0]
  assert one[2] == other[2]
  assert one[1] != other[1]


def test_going_on_from_the_last_token():
  whole, _ = _generate(PROMPT_BT, length=9, temperature=0)
  first, memory = _generate(PROMPT_BT, length=3, temperature=0)
  last_B1 = np.array(first)[:, -1:]
  rest, _ = _generate(last_B1, memory, length=6, temperature=0)
  assert [a + b for a, b in zip(first, rest)] == whole


def test_projected_memory_gives_the_same_text_and_stays_projected():
  memory = txl_jax.init_memory(CONFIG, 3)
  projected = txl_jax.project_memory(CONFIG, _params(), memory)
  plain, hidden = _generate(PROMPT_BT)
  fast, kept = _generate(PROMPT_BT, projected)
  assert plain == fast
  assert isinstance(hidden, txl_jax.Memory)
  assert isinstance(kept, txl_jax.ProjectedMemory)
  assert kept.valid_B.tolist() == hidden.valid_B.tolist() == [9, 9, 9]


def test_nothing_before_a_boundary_is_seen():
  with_past = [[1, 2, 3, 11, 5]]
  without = [[11, 5]]
  options = {'temperature': 0, 'boundary': 11, 'length': 3}
  assert _generate(with_past, **options)[0] == _generate(without, **options)[0]
  _, memory = _generate(with_past, **options)
  assert memory.valid_B.tolist() == [4]


def test_a_generated_boundary_hides_the_text_before_it():
  params = dict(_params())
  bias_V = params['softmax']['bias'].at[11].set(100.0)
  params['softmax'] = {**params['softmax'], 'bias': bias_V}
  for boundary, valid in ((None, 7), (11, 1)):
    tokens_BL, memory = txl_jax.generate(
      CONFIG,
      params,
      jnp.array([[1, 2, 3]]),
      txl_jax.init_memory(CONFIG, 1),
      length=5,
      key=KEY,
      temperature=0,
      boundary=boundary,
    )
    assert tokens_BL.tolist() == [[11] * 5]
    assert memory.valid_B.tolist() == [valid]


@pytest.mark.parametrize(
  'options',
  [
    {'top_k': 3},
    pytest.param({'top_p': 0.5}, marks=pytest.mark.slow),
    pytest.param({'min_p': 0.4}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_sampling_options_reach_the_draws(options):
  prompt_BT = np.tile([[1, 2, 3]], (64, 1))
  memory = txl_jax.init_memory(CONFIG, 64)
  logp_BTV, _ = txl_jax.log_probs(CONFIG, _params(), prompt_BT, memory)
  order_V = np.argsort(-logp_BTV[0, -1])
  reached_V = np.cumsum(np.exp(logp_BTV[0, -1][order_V]))
  share_V = np.exp(logp_BTV[0, -1][order_V] - logp_BTV[0, -1].max())
  n_kept = {
    'top_k': 3,
    'top_p': 1 + (reached_V < 0.5).sum(),
    'min_p': (share_V >= 0.4).sum(),
  }[next(iter(options))]
  tokens_BL, _ = _generate(prompt_BT, length=1, **options)
  assert set(np.ravel(tokens_BL)) == set(order_V[:n_kept].tolist())


def test_it_works_inside_jit():
  memory = txl_jax.init_memory(CONFIG, 3)

  @jax.jit
  def run(params, prompt_BT, lengths_B):
    return txl_jax.generate(
      CONFIG,
      params,
      prompt_BT,
      memory,
      length=6,
      key=KEY,
      prompt_lengths_B=lengths_B,
    )[0]

  inside = run(_params(), PROMPT_BT, LENGTHS_B).tolist()
  assert inside == _generate(PROMPT_BT, prompt_lengths_B=LENGTHS_B)[0]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'length': 0}, 'length must be at least 1'),
    ({'temperature': -1}, 'temperature'),
    ({'top_k': 0}, 'top_k'),
    ({'top_p': 1.5}, 'top_p'),
    ({'min_p': 0}, 'min_p'),
    ({'stop': (3, 12)}, 'stop has the token id 12'),
    ({'prompt_lengths_B': np.array([1, 2, 6])}, 'from 1 to 5'),
    ({'prompt_lengths_B': np.array([1, 2])}, '3 numbers'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(InputError, match=message):
    _generate(PROMPT_BT, **options)


def test_a_prompt_outside_the_vocabulary():
  with pytest.raises(InputError, match='token id 12, outside the vocabulary'):
    _generate([[1, 12]])
