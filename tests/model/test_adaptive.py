"""Adaptive embedding and softmax against plain numpy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.model.adaptive import AdaptiveEmbedding, AdaptiveSoftmax

V, D = 20, 8
PLAIN = txl_jax.ModelConfig(
  vocab_size=V, n_layers=1, n_heads=1, d_model=D, d_head=4, d_ff=8, dropout=0.0
)
replace = functools.partial(dataclasses.replace, PLAIN)
DIV1 = functools.partial(replace, cutoffs=(5, 11))
DIV2 = functools.partial(DIV1, div_val=2)
TABLE, HEAD = {'table_0': (20, 8)}, {'cluster_weight': (2, 8)}
BIAS = {'bias': (20,)}
CLUSTERS = {**BIAS, **HEAD, 'cluster_bias': (2,)}
TABLES = {'table_0': (5, 8), 'table_1': (6, 4), 'table_2': (9, 2)}
SQUARE = {'projection_0': (8, 8)}
OTHERS = {'projection_1': (4, 8), 'projection_2': (2, 8)}
EACH = {**SQUARE, **OTHERS}
TABLE6, UP = {'table_0': (20, 6)}, {'projection_0': (6, 8)}
CLUSTERS6 = {**CLUSTERS, 'cluster_weight': (2, 6)}
TABLES16 = {'table_0': (5, 16), 'table_1': (6, 8), 'table_2': (9, 4)}
DOWN = {'projection_0': (16, 8), 'projection_2': (4, 8)}
# name: options, parameters of the embedding, parameters of the softmax.
ROWS = {
  'plain': (PLAIN, TABLE, BIAS),
  'plain, untied': (replace(tie_weights=False), TABLE, BIAS | TABLE),
  'plain, narrow': (replace(d_embed=6), TABLE6 | UP, BIAS | UP),
  'plain, narrow, tied': (
    replace(d_embed=6, tie_projections=(True,), tie_weights=False),
    TABLE6 | UP,
    BIAS | TABLE6,
  ),
  'div 1': (DIV1(), TABLE, CLUSTERS),
  'div 1, untied': (DIV1(tie_weights=False), TABLE, CLUSTERS | TABLE),
  'div 1, narrow': (
    DIV1(d_embed=6),
    TABLE6 | UP,
    CLUSTERS6 | {f'projection_{i}': (6, 8) for i in range(3)},
  ),
  'div 1, narrow, some tied': (
    DIV1(d_embed=6, tie_projections=(False, True, True), tie_weights=False),
    TABLE6 | UP,
    CLUSTERS6 | TABLE6 | UP,
  ),
  'div 2': (DIV2(), TABLES | EACH, CLUSTERS | EACH),
  'div 2, some tied': (
    DIV2(tie_projections=(False, True, True)),
    TABLES | EACH,
    CLUSTERS | SQUARE,
  ),
  'div 2, all tied': (
    DIV2(tie_projections=(True, True, True), tie_weights=False),
    TABLES | EACH,
    CLUSTERS | TABLES,
  ),
  'div 2, not square': (
    DIV2(square_projections=False),
    TABLES | OTHERS,
    CLUSTERS | OTHERS,
  ),
  'div 2, wide, not square': (
    DIV2(
      d_embed=16,
      square_projections=False,
      tie_projections=(True, True, False),
    ),
    TABLES16 | DOWN,
    CLUSTERS | {'cluster_weight': (2, 16), 'projection_2': (4, 8)},
  ),
}
CASES = {name: config for name, (config, *_) in ROWS.items()}


class Both(nn.Module):
  """An embedding and a softmax with nothing between them."""

  config: txl_jax.ModelConfig

  def setup(self):
    self.embedding = AdaptiveEmbedding(self.config)
    self.softmax = AdaptiveSoftmax(self.config)

  def __call__(self, tokens_BT, targets_BT, hidden_BTD):
    """Embedded tokens, losses, and log-probabilities of all tokens."""
    if hidden_BTD is None:
      hidden_BTD = self.embedding(tokens_BT)
    vectors = self.embedding.vectors()
    nll_BT = self.softmax(hidden_BTD, targets_BT, vectors)
    logp_BTV = self.softmax.log_probs(hidden_BTD, vectors)
    return self.embedding(tokens_BT), nll_BT, logp_BTV


TOKENS_BT = np.random.default_rng(0).permutation(V).reshape(2, V // 2)
HIDDEN_BTD = np.random.default_rng(1).normal(size=(2, V // 2, D))
HIDDEN_BTD = HIDDEN_BTD.astype(np.float32)


def _shapes(config: txl_jax.ModelConfig) -> dict:
  init = jax.eval_shape(
    Both(config).init, jax.random.key(0), TOKENS_BT, TOKENS_BT, HIDDEN_BTD
  )
  return jax.tree.map(lambda leaf: leaf.shape, init['params'])


def _random_params(config: txl_jax.ModelConfig) -> dict:
  """Every parameter far from zero, the biases too."""
  random = np.random.default_rng(2)
  return jax.tree.map(
    lambda shape: random.normal(0, 0.5, shape).astype(np.float32),
    _shapes(config),
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _apply(config: txl_jax.ModelConfig, params: dict, *arguments) -> tuple:
  return jax.jit(Both(config).apply)({'params': params}, *arguments)


class Reference:
  """Section 0.6 of the inventory, word by word in float64."""

  def __init__(self, config: txl_jax.ModelConfig, params: dict):
    self.config = config
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    self.own, self.theirs = wide['softmax'], wide['embedding']
    self.edges = [0, *config.cutoffs, config.vocab_size]

  def cluster(self, token: int) -> int:
    return sum(token >= edge for edge in self.edges[1:])

  def table(self, params: dict, i: int) -> np.ndarray:
    if self.config.div_val > 1:
      return params[f'table_{i}']
    return params['table_0'][self.edges[i] : self.edges[i + 1]]

  def embed(self, token: int) -> np.ndarray:
    i = self.cluster(token)
    vector = self.table(self.theirs, i)[token - self.edges[i]]
    stored = i if self.config.div_val > 1 else 0
    if f'projection_{stored}' in self.theirs:
      vector = vector @ self.theirs[f'projection_{stored}']
    return vector * np.sqrt(self.config.d_model)

  def logits(self, hidden_D: np.ndarray, i: int) -> np.ndarray:
    tables = self.theirs if self.config.tie_weights else self.own
    weight, (low, high) = self.table(tables, i), self.edges[i : i + 2]
    bias = self.own['bias'][low:high]
    if i == 0 and self.config.cutoffs:
      weight = np.concatenate([weight, self.own['cluster_weight']])
      bias = np.concatenate([bias, self.own['cluster_bias']])
    tied = self.config.tie_projections and self.config.tie_projections[i]
    stored = 0 if tied and self.config.div_val == 1 else i
    name, source = f'projection_{stored}', self.theirs if tied else self.own
    if name in source:
      hidden_D = source[name] @ hidden_D
    return weight @ hidden_D + bias

  def log_prob(self, hidden_D: np.ndarray, token: int) -> float:
    i = self.cluster(token)
    head = _log_softmax(self.logits(hidden_D, 0))
    if i == 0:
      return head[token]
    tail = _log_softmax(self.logits(hidden_D, i))
    # Head columns: the words of cluster 0, then the clusters in order.
    return head[self.edges[1] + i - 1] + tail[token - self.edges[i]]


def _log_softmax(x: np.ndarray) -> np.ndarray:
  return x - np.log(np.exp(x).sum())


@pytest.mark.parametrize('name', CASES)
def test_parameters_of_each_option(name):
  config, embedding, softmax = ROWS[name]
  assert _shapes(config) == {'embedding': embedding, 'softmax': softmax}


@pytest.mark.parametrize('name', CASES)
def test_equals_plain_numpy_and_sums_to_one(name):
  config = CASES[name]
  params = _random_params(config)
  embedded_BTD, nll_BT, logp_BTV = _apply(
    config, params, TOKENS_BT, TOKENS_BT, HIDDEN_BTD
  )
  reference = Reference(config, params)
  for b, t in np.ndindex(TOKENS_BT.shape):
    token, hidden_D = TOKENS_BT[b, t], HIDDEN_BTD[b, t].astype(np.float64)
    np.testing.assert_allclose(
      embedded_BTD[b, t], reference.embed(token), rtol=1e-5, atol=1e-6
    )
    expected_V = [reference.log_prob(hidden_D, v) for v in range(V)]
    np.testing.assert_allclose(logp_BTV[b, t], expected_V, rtol=1e-5, atol=1e-5)
  # The targets are a permutation: every word is one.
  picked_BT = np.take_along_axis(
    np.asarray(logp_BTV), TOKENS_BT[..., None], axis=-1
  )
  np.testing.assert_allclose(nll_BT, -picked_BT[..., 0], rtol=1e-6)
  total_BT = np.exp(np.asarray(logp_BTV, np.float64)).sum(-1)
  np.testing.assert_allclose(total_BT, 1, rtol=1e-5)


@pytest.mark.parametrize('name', ['plain', 'div 1', 'div 2'])
def test_ids_outside_the_vocabulary_become_nan(name):
  config = CASES[name]
  bad_BT = np.array([[0, -1, V - 1], [V, 3, V + 1000]])
  outside_BT = (bad_BT < 0) | (bad_BT >= V)
  embedded_BTD, nll_BT, _ = _apply(
    config, _random_params(config), bad_BT, bad_BT, HIDDEN_BTD[:, :3]
  )
  np.testing.assert_array_equal(np.isnan(nll_BT), outside_BT)
  for d in range(D):
    np.testing.assert_array_equal(np.isnan(embedded_BTD[..., d]), outside_BT)


@pytest.mark.parametrize('bad', [-1, V])
def test_concrete_ids_outside_the_vocabulary_are_refused(bad):
  # Refused before anything else is looked at.
  good_BT = np.zeros((2, 3), np.int32)
  bad_BT = np.where(np.arange(3) == 1, bad, good_BT)
  message = f'has the token id {bad}, outside the vocabulary of 20'
  for score, axes in (
    (txl_jax.score, 'BT'),
    (txl_jax.score_segments, 'SBT'),
  ):
    with pytest.raises(InputError, match=f'tokens_{axes} {message}'):
      score(PLAIN, {}, bad_BT, good_BT, None)
    with pytest.raises(InputError, match=f'targets_{axes} {message}'):
      score(PLAIN, {}, good_BT, bad_BT, None)
  with pytest.raises(InputError, match=f'tokens_BT {message}'):
    txl_jax.log_probs(PLAIN, {}, bad_BT, None)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.uint16])
def test_any_integer_type_gives_the_same(dtype):
  # A vocabulary that uint8 cannot count, as bytes with a boundary.
  config = DIV2(vocab_size=257)
  params = _random_params(config)
  found, expected = (
    _apply(config, params, tokens_BT, tokens_BT, HIDDEN_BTD)
    for tokens_BT in (TOKENS_BT.astype(dtype), TOKENS_BT.astype(np.int32))
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ('tied', 'untied', 'names'),
  [
    (DIV1(), DIV1(tie_weights=False), ['table_0']),
    (DIV2(), DIV2(tie_weights=False), ['table_0', 'table_1', 'table_2']),
    (
      DIV2(tie_projections=(True, False, True)),
      DIV2(),
      ['projection_0', 'projection_2'],
    ),
    (
      DIV1(d_embed=6, tie_projections=(True, True, True)),
      DIV1(d_embed=6),
      ['projection_0'],
    ),
  ],
)
def test_tied_parameters_get_both_gradients(tied, untied, names):
  params = _random_params(tied)
  # The same numbers, each use with a copy of its own.
  embedding, copies = params['embedding'], dict(params['softmax'])
  for name in _shapes(untied)['softmax'].keys() - copies.keys():
    copies[name] = embedding.get(name, embedding.get('projection_0'))
  separate = {'embedding': embedding, 'softmax': copies}

  def gradient(config, params):
    def loss(params):
      arguments = TOKENS_BT, np.flip(TOKENS_BT), None
      return Both(config).apply({'params': params}, *arguments)[1].sum()

    return jax.jit(jax.value_and_grad(loss))(params)

  loss, found = gradient(tied, params)
  expected_loss, apart = gradient(untied, separate)
  assert loss == pytest.approx(float(expected_loss), rel=1e-6)
  for name in names:
    uses = [apart['embedding'][name]]
    if untied.div_val == 1 and name == 'projection_0':
      uses += [apart['softmax'][f'projection_{i}'] for i in range(3)]
    else:
      uses += [apart['softmax'][name]]
    assert all((np.abs(use) > 1e-3).any() for use in uses)
    np.testing.assert_allclose(
      found['embedding'][name], sum(uses), rtol=1e-4, atol=1e-4
    )
