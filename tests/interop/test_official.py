"""The paper's PyTorch code gives the same numbers from the same weights.

The cases of TXL_GOLDEN_DIR come from that code; those of tests/fixtures from
Hugging Face's port of it (`make_fixtures.py`), whose memory starts with
attended zeros.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError

GOLDEN = [
  'basic',
  'untied',
  'pre_layer_norm',
  'longer_memory',
  'same_length_clamped',
  'embed_smaller_than_model',
  'adaptive_div1',
  'adaptive_div2_projected',
  'shaw_relative',
  'absolute_sinusoid',
  'absolute_learned',
]
FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


@dataclasses.dataclass
class Case:
  """One model and its recorded results."""

  stored: dict
  config: txl_jax.ModelConfig
  params: dict

  @classmethod
  def load(cls, path: pathlib.Path) -> 'Case':
    stored = dict(np.load(path))
    arrays = {
      name.removeprefix('param/'): array
      for name, array in stored.items()
      if name.startswith('param/')
    }
    options = json.loads(str(stored['config']))
    return cls(stored, *txl_jax.from_official(arrays, options))

  def segments(self) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets [S, B, T]."""
    options = json.loads(str(self.stored['config']))
    n_segments, length = options['segments'], options['tgt_len']
    tokens_LB = self.stored['tokens'].astype(np.int32)

    def split(tokens_LB: np.ndarray) -> np.ndarray:
      return tokens_LB.reshape(n_segments, length, -1).transpose(0, 2, 1)

    return split(tokens_LB[:-1]), split(tokens_LB[1:])


@pytest.mark.parametrize('name', GOLDEN)
def test_losses_and_memories_in_float32(golden_dir, name):
  case = Case.load(golden_dir / f'{name}.npz')
  memory = txl_jax.init_memory(case.config, 3)
  apply = jax.jit(txl_jax.TransformerXL(case.config).apply)
  for s, (tokens_BT, targets_BT) in enumerate(zip(*case.segments())):
    hidden_BTD, _ = apply({'params': case.params}, tokens_BT, memory)
    nll_BT, memory = txl_jax.score(
      case.config, case.params, tokens_BT, targets_BT, memory
    )
    assert _distance(nll_BT.T, case.stored[f'seg{s}/loss']) < 2e-5
    if not case.config.memory_length:
      continue
    _check_memory(case, memory, s)
    # The official code also keeps the last layer's output and never reads it.
    last = case.stored[f'seg{s}/mem{case.config.n_layers}']
    n_shared = min(len(last), hidden_BTD.shape[1])
    ours = hidden_BTD.swapaxes(0, 1)[-n_shared:]
    assert _distance(ours, last[-n_shared:]) < 2e-5


def _check_memory(case: Case, memory: txl_jax.Memory, s: int) -> None:
  for n in range(case.config.n_layers):
    expected_MBD = case.stored[f'seg{s}/mem{n}']
    assert (memory.valid_B == len(expected_MBD)).all()
    valid_BMD = memory.hidden_NBMD[n][:, -len(expected_MBD) :]
    assert _distance(valid_BMD.swapaxes(0, 1), expected_MBD) < 2e-5


@pytest.mark.parametrize('name', GOLDEN)
def test_losses_in_float64(golden_dir, name):
  case = Case.load(golden_dir / f'{name}.npz')
  nll_SBT = _score_in_float64(case)
  for s, nll_BT in enumerate(nll_SBT):
    assert _distance(nll_BT.T, case.stored[f'seg{s}/loss']) < 1e-6


@pytest.mark.parametrize('name', GOLDEN)
def test_gradient_norms(golden_dir, name):
  case = Case.load(golden_dir / f'{name}.npz')

  def loss(params, tokens_BT, targets_BT, memory):
    nll_BT, memory = txl_jax.score(
      case.config, params, tokens_BT, targets_BT, memory
    )
    return nll_BT.mean(), memory

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  memory = txl_jax.init_memory(case.config, 3)
  for s, (tokens_BT, targets_BT) in enumerate(zip(*case.segments())):
    gradients, memory = gradient(case.params, tokens_BT, targets_BT, memory)
    gradients = jax.device_get(gradients)
    ours = _official_norms(gradients)
    prefix = f'seg{s}/gradnorm/'
    expected = {
      name.removeprefix(prefix): value
      for name, value in case.stored.items()
      if name.startswith(prefix)
    }
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
      assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize('path', sorted(FIXTURES.glob('*.npz')), ids=str)
def test_losses_of_the_port_with_attended_zeros(path):
  case = Case.load(path)
  case.config = dataclasses.replace(case.config, memory_start='zeros')
  memory = txl_jax.init_memory(case.config, case.segments()[0].shape[1])
  nll_SBT, _ = txl_jax.score_segments(
    case.config, case.params, *case.segments(), memory
  )
  assert _distance(nll_SBT, case.stored['losses']) < 2e-5


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda a, o: a.pop('r_w_bias'), 'lack r_w_bias'),
    (lambda a, o: a.update(extra=np.zeros(3)), 'no place for the arrays extra'),
    (lambda a, o: o.pop('n_head'), 'lack n_head'),
    (lambda a, o: o.update(attn_type=4), 'attn_type must be 0 or 1 .* found 4'),
    (lambda a, o: o.update(attn_type=1), 'lack r_emb'),
    (lambda a, o: o.update(attn_type=2), 'mem_len must be 0, found'),
    (lambda a, o: o.update(d_inner=7), 'must have shape'),
    (
      lambda a, o: a.update({'crit.out_layers.0.weight': np.zeros((50, 16))}),
      'weight differs from word_emb',
    ),
  ],
)
def test_what_cannot_be_imported_is_named(change, message):
  stored = dict(np.load(FIXTURES / 'full_softmax.npz'))
  options = json.loads(str(stored['config']))
  arrays = {
    name.removeprefix('param/'): array
    for name, array in stored.items()
    if name.startswith('param/')
  }
  change(arrays, options)
  with pytest.raises(InputError, match=message):
    txl_jax.from_official(arrays, options)


def _score_in_float64(case: Case) -> jax.Array:
  with jax.enable_x64(True):
    config = dataclasses.replace(case.config, dtype='float64')
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), case.params)
    tokens_SBT, targets_SBT = case.segments()
    nll_SBT, _ = txl_jax.score_segments(
      config, params, tokens_SBT, targets_SBT, txl_jax.init_memory(config, 3)
    )
    return np.asarray(nll_SBT)


def _distance(a, b) -> float:
  assert np.shape(a) == np.shape(b)
  return float(np.abs(np.asarray(a, np.float64) - b).max())


def _official_norms(gradients: dict) -> dict[str, float]:
  """2-norms under the official names, q, k and v taken as one matrix."""

  def norm(*arrays) -> float:
    return float(
      np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays))
    )

  embedding, softmax = gradients['embedding'], gradients['softmax']
  result, bounds, layers = {}, [], gradients['layers']
  for name, gradient in (
    ('r_w_bias', gradients.get('content_bias')),
    ('r_r_bias', gradients.get('position_bias')),
    ('r_w_bias', layers['attention'].get('content_bias')),
    ('r_bias', layers['attention'].get('distance_bias')),
    ('r_emb', layers['attention'].get('distance_embedding')),
    ('r_emb', layers.get('positions', {}).get('table')),
  ):
    if gradient is not None:
      result[name] = norm(gradient)
  for name, gradient in embedding.items():
    kind, i = name.split('_')
    if kind == 'table':
      result[f'word_emb.emb_layers.{i}.weight'] = norm(gradient)
      bounds.append(len(gradient))
    else:
      result[f'word_emb.emb_projs.{i}'] = norm(gradient)
  edges = np.cumsum([0, *bounds])
  for i, (low, high) in enumerate(zip(edges, edges[1:])):
    result[f'crit.out_layers.{i}.bias'] = norm(softmax['bias'][low:high])
  for name, gradient in softmax.items():
    if name.startswith('cluster'):
      result[f'crit.{name}'] = norm(gradient)
    elif name != 'bias':
      kind, i = name.split('_')
      kind = {'table': 'out_layers', 'projection': 'out_projs'}[kind]
      ending = '.weight' if kind == 'out_layers' else ''
      result[f'crit.{kind}.{i}{ending}'] = norm(gradient)
  for n in range(len(layers['attention']['query'])):
    layer = jax.tree.map(lambda x: x[n], layers)  # noqa: B023
    result |= {
      f'layers.{n}.{k}': v for k, v in _layer_norms(layer, norm).items()
    }
  return result


def _layer_norms(layer: dict, norm) -> dict[str, float]:
  attention, inner = layer['attention'], layer['feed_forward']
  query, key, value = (attention[name] for name in ('query', 'key', 'value'))
  if 'relative' in attention:
    result = {'dec_attn.r_net.weight': norm(attention['relative'])}
  else:
    result = {}
  if 'relative' in attention or 'distance_bias' in attention:
    result['dec_attn.qkv_net.weight'] = norm(query, key, value)
  else:
    result['dec_attn.q_net.weight'] = norm(query)
    result['dec_attn.kv_net.weight'] = norm(key, value)
  result |= {
    'dec_attn.o_net.weight': norm(attention['output']),
    'pos_ff.CoreNet.0.weight': norm(inner['inner_kernel']),
    'pos_ff.CoreNet.0.bias': norm(inner['inner_bias']),
    'pos_ff.CoreNet.3.weight': norm(inner['outer_kernel']),
    'pos_ff.CoreNet.3.bias': norm(inner['outer_bias']),
  }
  for theirs, ours in (('dec_attn', 'attention'), ('pos_ff', 'feed_forward')):
    result[f'{theirs}.layer_norm.weight'] = norm(layer[f'{ours}_norm']['scale'])
    result[f'{theirs}.layer_norm.bias'] = norm(layer[f'{ours}_norm']['bias'])
  return result
