"""Properties of the model: memory, causality, documents, variants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.model import memory as memory_lib

POST = txl_jax.ModelConfig(
  vocab_size=11,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=7,
  dropout=0.0,
  init_std=0.4,
)
PRE = dataclasses.replace(POST, pre_norm=True, untie_biases=True)
both = pytest.mark.parametrize('config', [POST, PRE], ids=['post', 'pre'])
B, T, S = 2, 4, 5


@functools.cache
def _params(config: txl_jax.ModelConfig) -> dict:
  return txl_jax.init_params(config, jax.random.key(0))


def _text(n_segments: int = S) -> jax.Array:
  """Tokens [B, S * T + 1]."""
  return jax.random.randint(jax.random.key(1), (B, n_segments * T + 1), 0, 11)


def _segments(n_segments: int = S) -> tuple[jax.Array, jax.Array]:
  text = _text(n_segments)

  def split(text_BL: jax.Array) -> jax.Array:
    return text_BL.reshape(B, n_segments, T).swapaxes(0, 1)

  return split(text[:, :-1]), split(text[:, 1:])


def _losses(config, memory=None, **options) -> tuple[jax.Array, object]:
  memory = memory or txl_jax.init_memory(config, B)
  return txl_jax.score_segments(
    config, _params(config), *_segments(), memory, **options
  )


@both
@pytest.mark.parametrize('memory_length', [3, 7, 40])
def test_segments_equal_one_long_pass(config, memory_length, monkeypatch):
  config = dataclasses.replace(config, memory_length=memory_length)
  nll_SBT, _ = _losses(config)
  segment_of_L = np.arange(S * T) // T
  seen_from_L = np.maximum(segment_of_L * T - memory_length, 0)

  def what_each_token_saw(*_, **__) -> jax.Array:
    return jnp.tile(jnp.asarray(seen_from_L), (B, 1))

  monkeypatch.setattr(memory_lib, 'visibility', what_each_token_saw)
  text, model = _text(), txl_jax.TransformerXL(config)
  long_BL, _ = jax.jit(lambda p, *a: model.apply(p, *a, method='score'))(
    {'params': _params(config)},
    text[:, :-1],
    text[:, 1:],
    txl_jax.init_memory(config, B, memory_length=0),
  )
  segments_BL = nll_SBT.swapaxes(0, 1).reshape(B, -1)
  np.testing.assert_allclose(segments_BL, long_BL, rtol=1e-5, atol=1e-6)


@both
def test_scan_equals_a_python_loop(config):
  memory, losses = txl_jax.init_memory(config, B), []
  for tokens_BT, targets_BT in zip(*_segments()):
    nll_BT, memory = txl_jax.score(
      config, _params(config), tokens_BT, targets_BT, memory
    )
    losses.append(nll_BT)
  nll_SBT, last = _losses(config)
  np.testing.assert_allclose(nll_SBT, losses, rtol=1e-5)
  np.testing.assert_allclose(last.hidden_NBMD, memory.hidden_NBMD, atol=1e-5)
  assert last.valid_B.tolist() == memory.valid_B.tolist() == [7, 7]


@pytest.mark.slow
def test_how_it_is_computed_does_not_matter():
  # With dropout: recomputed and unrolled layers draw the same masks.
  config = dataclasses.replace(POST, dropout=0.3, attention_dropout=0.3)
  hidden_NBMD = jax.random.normal(jax.random.key(2), (2, B, 7, 16))
  memory = txl_jax.Memory(hidden_NBMD, jnp.full(B, 7))
  text_BL = _text(1)

  def measure(change):
    def loss(params):
      nll_BT, _ = txl_jax.score(
        dataclasses.replace(config, **change),
        params,
        text_BL[:, :-1],
        text_BL[:, 1:],
        memory,
        dropout_key=jax.random.key(5),
      )
      return nll_BT.sum()

    return jax.jit(jax.value_and_grad(loss))(_params(POST))

  expected = measure({'unroll': 1})
  for change in ({'unroll': 1, 'remat': True}, {'unroll': 2}):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      measure(change),
      expected,
    )


@both
def test_no_gradient_from_the_future(config):
  """d loss_i / d (embedding of token j) is 0 for j > i, and not for j <= i."""
  model, variables = txl_jax.TransformerXL(config), {'params': _params(config)}
  tokens_BT = jnp.arange(T)[None]
  memory = txl_jax.init_memory(config, 1)

  def hidden(table_VE):
    params = dict(variables['params'])
    params['embedding'] = {'table_0': table_VE}
    hidden_BTD, _ = model.apply({'params': params}, tokens_BT, memory)
    return (hidden_BTD[0] * jnp.arange(1.0, 17.0)).sum(-1)

  table_VE = variables['params']['embedding']['table_0']
  jacobian_TVE = jax.jit(jax.jacobian(hidden))(table_VE)
  size_TT = np.abs(jacobian_TVE[:, :T]).sum(-1)
  assert (np.triu(size_TT, 1) == 0).all()
  assert (size_TT[np.tril_indices(T)] > 1e-6).all()


@both
def test_gradient_reaches_exactly_the_memory_that_is_seen(config):
  config = dataclasses.replace(config, n_layers=1, attention_span=6)
  model, variables = txl_jax.TransformerXL(config), {'params': _params(config)}
  hidden_NBMD = jax.random.normal(jax.random.key(2), (1, 3, 7, 16))
  valid_B = np.array([0, 3, 7])

  def out(hidden_NBMD):
    memory = txl_jax.Memory(hidden_NBMD, jnp.asarray(valid_B))
    out_BTD, _ = model.apply(variables, jnp.ones((3, T), int), memory)
    return (out_BTD * jnp.arange(1.0, 17.0)).sum((0, 2))

  seen_TBM = np.abs(jax.jit(jax.jacobian(out))(hidden_NBMD)[:, 0]).sum(-1) > 0
  for i, b, j in np.ndindex(T, 3, 7):
    assert seen_TBM[i, b, j] == (j >= 7 - valid_B[b] and 7 + i - j < 6)


@both
def test_no_gradient_reaches_the_memory(config):
  tokens_SBT, targets_SBT = _segments(2)

  def second_loss(params, earlier):
    memory = txl_jax.init_memory(config, B)
    _, memory = txl_jax.score(
      config, earlier, tokens_SBT[0], targets_SBT[0], memory
    )
    nll_BT, _ = txl_jax.score(
      config, params, tokens_SBT[1], targets_SBT[1], memory
    )
    return nll_BT.sum()

  params = _params(config)
  gradient = jax.jit(jax.grad(second_loss, argnums=(0, 1)))
  own, through_memory = gradient(params, params)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(through_memory))


@both
@pytest.mark.parametrize('start', [0, 1, 3])
def test_a_document_gets_the_losses_it_gets_alone(config, start):
  _, full = _losses(config)
  tokens_SBT, targets_SBT = _segments(2)
  starts_SBT = np.zeros((2, B, T), bool)
  starts_SBT[0, :, start] = True
  nll_SBT, memory = txl_jax.score_segments(
    config,
    _params(config),
    tokens_SBT,
    targets_SBT,
    full,
    starts_SBT=starts_SBT,
  )
  text = _text(2)[:, start:]
  alone_BL, _ = txl_jax.score(
    config,
    _params(config),
    text[:, :-1],
    text[:, 1:],
    txl_jax.init_memory(config, B),
  )
  found_BL = nll_SBT.swapaxes(0, 1).reshape(B, -1)[:, start:]
  np.testing.assert_allclose(found_BL, alone_BL, rtol=1e-5, atol=1e-6)
  assert memory.valid_B.tolist() == [min(7, 2 * T - start)] * B


@both
def test_projected_memory_gives_the_same(config):
  empty = txl_jax.init_memory(config, B)
  projected = txl_jax.project_memory(config, _params(config), empty)
  hidden_SBT, after = _losses(config)
  nll_SBT, kept = _losses(config, projected)
  np.testing.assert_allclose(nll_SBT, hidden_SBT, rtol=1e-5, atol=1e-6)
  assert isinstance(kept, txl_jax.ProjectedMemory)
  again = txl_jax.project_memory(config, _params(config), after)
  np.testing.assert_allclose(again.keys_NBMHC, kept.keys_NBMHC, atol=1e-5)
  assert again.valid_B.tolist() == kept.valid_B.tolist()


def test_the_span_bounds_what_is_seen():
  config = dataclasses.replace(POST, n_layers=1, attention_span=3)
  text = _text(1)
  changed = text.at[:, 0].add(1) % 11

  def hidden(tokens_BT):
    memory = txl_jax.init_memory(config, B)
    model = txl_jax.TransformerXL(config)
    return model.apply({'params': _params(config)}, tokens_BT, memory)[0]

  differs_BT = np.abs(hidden(text) - hidden(changed)).max(-1) > 1e-6
  assert differs_BT.tolist() == [[True, True, True, False, False]] * B


def test_without_memory_segments_are_alone():
  config = dataclasses.replace(POST, memory_length=0)
  nll_SBT, memory = _losses(config)
  tokens_SBT, targets_SBT = _segments()
  last_BT, _ = txl_jax.score(
    config,
    _params(config),
    tokens_SBT[-1],
    targets_SBT[-1],
    txl_jax.init_memory(config, B),
  )
  np.testing.assert_allclose(nll_SBT[-1], last_BT, rtol=1e-5)
  assert memory.hidden_NBMD.shape == (2, B, 0, 16)


def test_dropout_follows_its_key():
  config = dataclasses.replace(POST, dropout=0.3, attention_dropout=0.3)
  same, other = jax.random.key(3), jax.random.key(4)
  first, _ = _losses(config, dropout_key=same)
  np.testing.assert_array_equal(first, _losses(config, dropout_key=same)[0])
  assert (first != _losses(config, dropout_key=other)[0]).mean() > 0.9
  # Without a key nothing is dropped.
  clean, _ = _losses(
    dataclasses.replace(config, dropout=0, attention_dropout=0)
  )
  np.testing.assert_array_equal(_losses(config)[0], clean)


def test_bfloat16_is_close():
  config = dataclasses.replace(POST, dtype='bfloat16', init_std=0.1)
  wide = dataclasses.replace(config, dtype='float32')
  nll_SBT, memory = _losses(config)
  assert nll_SBT.dtype == jnp.float32
  assert memory.hidden_NBMD.dtype == jnp.bfloat16
  np.testing.assert_allclose(nll_SBT, _losses(wide)[0], atol=0.03)


@pytest.mark.parametrize(
  ('change', 'rows', 'starts', 'message'),
  [
    ({}, 3, None, 'the memory has 3 rows, the tokens have 2'),
    ({'attention_span': 8}, 2, None, 'needs a memory of at least 7'),
    ({'memory_start': 'zeros'}, 2, True, 'starts_BT needs'),
  ],
)
def test_what_cannot_be_meant_is_refused(change, rows, starts, message):
  config = dataclasses.replace(POST, **change)
  memory = txl_jax.init_memory(config, rows, 5 if change else None)
  tokens_BT = jnp.zeros((2, 4), int)
  starts_BT = None if starts is None else jnp.ones((2, 4), bool)
  with pytest.raises(InputError, match=message):
    txl_jax.log_probs(
      config, _params(POST), tokens_BT, memory, starts_BT=starts_BT
    )
