"""The encodings that the paper's own is compared with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.model import ablations
from txl_jax.model import memory as memory_lib

B, T, S, V = 2, 4, 5, 11
BASE = txl_jax.ModelConfig(
  vocab_size=V,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=7,
  dropout=0.0,
  init_std=0.4,
  position_encoding='shaw',
  n_positions=4,
)
ENCODINGS = ['shaw', 'sinusoid', 'learned']
each_encoding = pytest.mark.parametrize('encoding', ENCODINGS)


def _config(encoding: str, **changes) -> txl_jax.ModelConfig:
  return dataclasses.replace(BASE, position_encoding=encoding, **changes)


@functools.cache
def _params(config: txl_jax.ModelConfig) -> dict:
  params = txl_jax.init_params(config, jax.random.key(0))
  attention = params['layers']['attention']
  if 'distance_bias' in attention:  # 0 at first
    shape = attention['distance_bias'].shape
    attention['distance_bias'] = jax.random.normal(jax.random.key(9), shape)
  return params


def _text() -> jax.Array:
  return jax.random.randint(jax.random.key(1), (B, S * T + 1), 0, V)


def _segments() -> tuple[jax.Array, jax.Array]:
  def split(text_BL: jax.Array) -> jax.Array:
    return text_BL.reshape(B, S, T).swapaxes(0, 1)

  return split(_text()[:, :-1]), split(_text()[:, 1:])


@each_encoding
@pytest.mark.parametrize(
  ('pre_norm', 'memory_length'), [(False, 3), (True, 40)]
)
def test_segments_equal_one_long_pass(
  encoding, pre_norm, memory_length, monkeypatch
):
  changes = dict(pre_norm=pre_norm, memory_length=memory_length)
  config = _config(encoding, **changes)
  memory = txl_jax.init_memory(config, B)
  nll_SBT, _ = txl_jax.score_segments(
    config, _params(config), *_segments(), memory
  )
  segment_of_L = np.arange(S * T) // T
  seen_from_L = np.maximum(segment_of_L * T - memory_length, 0)

  def what_each_token_saw(*_, **__) -> jax.Array:
    return jnp.tile(jnp.asarray(seen_from_L), (B, 1))

  monkeypatch.setattr(memory_lib, 'visibility', what_each_token_saw)
  model = txl_jax.TransformerXL(config)
  long_BL, _ = jax.jit(lambda p, *a: model.apply(p, *a, method='score'))(
    {'params': _params(config)},
    _text()[:, :-1],
    _text()[:, 1:],
    txl_jax.init_memory(config, B, memory_length=0),
  )
  segments_BL = nll_SBT.swapaxes(0, 1).reshape(B, -1)
  np.testing.assert_allclose(segments_BL, long_BL, rtol=1e-5, atol=4e-6)


@each_encoding
def test_projected_memory_gives_the_same_losses(encoding):
  config = _config(encoding)
  memory = txl_jax.init_memory(config, B)
  losses = [
    txl_jax.score_segments(config, _params(config), *_segments(), start)[0]
    for start in (
      memory,
      txl_jax.project_memory(config, _params(config), memory),
    )
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('encoding', ['sinusoid', 'learned'])
def test_a_position_is_added_once_and_stays(encoding):
  """The paper's code adds positions to the memory at every segment."""
  config = _config(encoding, memory_length=2 * T)
  params, memory = _params(config), txl_jax.init_memory(config, B)
  for tokens_BT, targets_BT in zip(*_segments()):
    _, memory = txl_jax.score(config, params, tokens_BT, targets_BT, memory)
  tokens_BL = _text()[:, -2 * T - 1 : -1]
  embedded_BLD = params['embedding']['table_0'][tokens_BL] * 16**0.5
  if encoding == 'learned':
    table_PD = params['layers']['positions']['table'][0]
  else:
    frequency = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    angle = np.arange(3, -1, -1)[:, None] * frequency
    table_PD = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  expected = embedded_BLD + np.tile(table_PD, (2, 1))
  np.testing.assert_allclose(memory.hidden_NBMD[0], expected, atol=1e-5)


def test_short_segments_have_the_last_positions():
  assert ablations.position_in_period(4, 4).tolist() == [0, 1, 2, 3]
  assert ablations.position_in_period(2, 4).tolist() == [2, 3]
  assert ablations.position_in_period(8, 4).tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize('clamp_length', [None, 2])
def test_scores_of_shaw_against_their_formula(clamp_length):
  config = _config('shaw', n_positions=5, clamp_length=clamp_length)
  H, C, M = 2, 8, 3
  keys = iter(jax.random.split(jax.random.key(3), 9))
  q, k, v = (jax.random.normal(next(keys), (1, n, H, C)) for n in (T, 7, 7))
  params = {
    'distance_embedding': jax.random.normal(next(keys), (5, H, C)),
    'distance_bias': jax.random.normal(next(keys), (5, H)),
    'content_bias': jax.random.normal(next(keys), (H, C)),
  }

  class Bare(ablations.ShawAttention):
    """Only what happens inside the heads."""

    @ablations.nn.compact
    def __call__(self, *arguments):
      return self.attend(*arguments)

  first_BT = jnp.array([[0, 0, 1, 2]])
  out = Bare(config, False).apply(
    {'params': params}, q, k, v, None, None, first_BT
  )
  a_PHC, b_PH, u_HC = map(np.asarray, params.values())
  farthest = 4 if clamp_length is None else clamp_length
  for h in range(H):
    for i in range(T):
      seen = range(int(first_BT[0, i]), M + i + 1)
      scores = []
      for j in seen:
        d = min(M + i - j, farthest)
        content = (q[0, i, h] + u_HC[h]) @ k[0, j, h]
        position = q[0, i, h] @ a_PHC[d, h] + b_PH[d, h]
        scores.append((content + position) / C**0.5)
      weight = np.exp(scores) / np.exp(scores).sum()
      expected = sum(w * v[0, j, h] for w, j in zip(weight, seen))
      np.testing.assert_allclose(out[0, i, h], expected, rtol=1e-4, atol=1e-5)


@each_encoding
def test_nothing_of_the_future_is_seen(encoding):
  config = _config(encoding)
  (tokens_SBT, targets_SBT), memory = (
    _segments(),
    txl_jax.init_memory(config, B),
  )
  losses = []
  for last in (0, 1):
    changed_SBT = tokens_SBT.at[-1, :, -1].set(last)
    nll_SBT, _ = txl_jax.score_segments(
      config, _params(config), changed_SBT, targets_SBT, memory
    )
    losses.append(nll_SBT)
  assert jnp.array_equal(losses[0][:-1], losses[1][:-1])
  assert jnp.array_equal(losses[0][-1, :, :-1], losses[1][-1, :, :-1])
  assert not jnp.array_equal(losses[0][-1, :, -1], losses[1][-1, :, -1])


def test_parameters_of_each_encoding():
  def count(encoding, **changes):
    config, key = _config(encoding, **changes), jax.random.key(0)
    params = jax.eval_shape(lambda: txl_jax.init_params(config, key))
    return sum(x.size for x in jax.tree.leaves(params))

  layers, width, heads, head_width = 2, 16, 2, 8
  plain = count('sinusoid')
  assert count('sinusoid', n_positions=9) == plain
  assert count('learned', n_positions=9) == plain + layers * 9 * width
  per_distance = heads * head_width + heads
  shaw = layers * (9 * per_distance + width)
  assert count('shaw', n_positions=9) == plain + shaw
  relative = layers * width * width + 2 * width
  assert count('relative', n_positions=None) == plain + relative


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      dict(position_encoding='relative', n_positions=3),
      "config.model.n_positions must be None with position_encoding 'relative'",
    ),
    (
      dict(position_encoding='learned', n_positions=None),
      'n_positions must be at least 1 with position_encoding',
    ),
    (
      dict(position_encoding='sinusoid', clamp_length=3),
      "clamp_length must be None with position_encoding 'sinusoid', found 3",
    ),
  ],
)
def test_what_cannot_be_is_refused(changes, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(BASE, **changes)


def test_absolute_positions_do_not_generate():
  config = _config('learned')
  with pytest.raises(InputError, match="position_encoding 'learned' cannot"):
    txl_jax.generate(
      config,
      _params(config),
      _text()[:, :3],
      txl_jax.init_memory(config, B),
      length=2,
      key=jax.random.key(0),
    )
