"""Checkpoints of the paper's TensorFlow code.

Its names and shapes are put together here, from a model that Hugging Face's
code has saved and scored; TensorFlow itself writes the file in one test.
"""

import pathlib
import sys

import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.interop.checkpoints import read_checkpoint
from txl_jax.interop.hugging_face import _arrays
from txl_jax.interop.tensorflow_files import from_tensorflow

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'checkpoints'
CASES = sorted(
  path.name
  for path in FOLDER.glob('hugging_face_*')
  # This code has neither untied weights nor layer norm before.
  if not path.name.endswith(('untied', 'pre_norm'))
)
# What these checkpoints do not tell, and the one number that is different in
# Hugging Face's code.
GIVEN = {'memory_length': 7, 'layer_norm_epsilon': 1e-5}


def _given(name: str) -> dict:
  config = read_checkpoint(FOLDER / name).config
  spans = ('attention_span', 'clamp_length')
  return {**GIVEN, **{field: getattr(config, field) for field in spans}}


def _variables(name: str, square: bool = True) -> dict[str, np.ndarray]:
  """The model of a fixture under TensorFlow's names.

  Args:
    name: of the fixture.
    square: whether a cluster of the model's width has projections.
  """
  arrays = {n: np.asarray(a) for n, a in _arrays(FOLDER / name).items()}
  get = {n.removeprefix('transformer.'): a for n, a in arrays.items()}.get
  projections = [get(f'word_emb.emb_projs.{i}') for i in range(3)]
  tables = [get(f'word_emb.emb_layers.{i}.weight') for i in range(3)]
  sizes, single = (10, 10, 20), tables[1] is None
  result = {}
  for i, table in enumerate(tables):
    scope = 'adaptive_embed/' + ('' if single else f'cutoff_{i}/')
    if table is not None:
      result[f'{scope}lookup_table'] = table
    if projections[i] is not None and (square or i):
      result[f'{scope}proj_W'] = projections[i].T
  bias = np.concatenate(
    [get(f'crit.out_layers.{i}.bias', np.zeros(0)) for i in range(3)]
  )
  for i, part in enumerate(np.split(bias, np.cumsum(sizes)[:-1])):
    result[f'adaptive_softmax/cutoff_{i}/b'] = part
  # All but the first projection are tied in these models.
  if get('crit.out_projs.0') is not None and square:
    result['adaptive_softmax/cutoff_0/proj'] = get('crit.out_projs.0').T
  for ours, theirs in (('W', 'weight'), ('b', 'bias')):
    cluster = get(f'crit.cluster_{theirs}')
    result[f'adaptive_softmax/cutoff_0/cluster_{ours}'] = cluster
  for bias in ('r_w_bias', 'r_r_bias'):
    parts = [get(f'layers.{n}.dec_attn.{bias}') for n in range(2)]
    result[bias] = np.stack(parts)
  for n in range(2):
    result |= _layer(lambda name, n=n: get(f'layers.{n}.{name}'), n)
  return {f'transformer/{n}': a.astype(np.float32) for n, a in result.items()}


def _layer(get, n: int) -> dict[str, np.ndarray]:
  result = {}
  for name in ('qkv', 'r', 'o'):
    kernel = get(f'dec_attn.{name}_net.weight').T
    result[f'layer_{n}/rel_attn/{name}/kernel'] = kernel
  for ours, theirs in (('rel_attn', 'dec_attn'), ('ff', 'pos_ff')):
    for part, name in (('gamma', 'weight'), ('beta', 'bias')):
      norm = get(f'{theirs}.layer_norm.{name}')
      result[f'layer_{n}/{ours}/LayerNorm/{part}'] = norm
  for ours, theirs in ((1, 0), (2, 3)):
    name = f'layer_{n}/ff/layer_{ours}'
    result[f'{name}/kernel'] = get(f'pos_ff.CoreNet.{theirs}.weight').T
    result[f'{name}/bias'] = get(f'pos_ff.CoreNet.{theirs}.bias')
  return result


def _check_losses(imported, name: str) -> None:
  expected = np.load(FOLDER / name / 'expected.npz')
  tokens_BL, losses_SBT = expected['tokens'].T, expected['losses']
  S, B, T = losses_SBT.shape
  inputs, targets = (
    tokens.reshape(B, S, T).swapaxes(0, 1)
    for tokens in (tokens_BL[:, :-1], tokens_BL[:, 1:])
  )
  config = imported.config
  memory = txl_jax.init_memory(config, B)
  nll_SBT, _ = txl_jax.score_segments(
    config, imported.params, inputs, targets, memory
  )
  np.testing.assert_allclose(nll_SBT, losses_SBT, rtol=0, atol=2e-5)


@pytest.mark.parametrize('name', CASES)
def test_losses_are_those_of_the_same_model(name):
  _check_losses(from_tensorflow(_variables(name), _given(name)), name)


def test_what_this_code_always_does_is_in_the_configuration():
  given = {'memory_length': 7, 'attention_span': 8, 'clamp_length': None}
  found = from_tensorflow(_variables('hugging_face_div_2', square=False), given)
  config = found.config
  assert config.layer_norm_epsilon == 1e-12
  assert config.memory_start == 'zeros'
  assert config.untie_biases
  assert not config.square_projections
  assert 'projection_0' not in found.params['embedding']
  assert config.tie_projections == (False, True, True)


def test_shared_biases_and_variables_of_training():
  variables = _variables('hugging_face_div_2')
  for bias in ('transformer/r_w_bias', 'transformer/r_r_bias'):
    variables[bias] = variables[bias][0]
    variables[f'{bias}/Adam_1'] = variables[bias]
  variables['global_step'] = np.array(3)
  found = from_tensorflow(variables, _given('hugging_face_div_2'))
  assert not found.config.untie_biases
  assert found.params['content_bias'].shape == (2, 4)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: v.pop('transformer/r_w_bias'), 'lacks transformer/r_w_bias'),
    (
      lambda v: v.pop('transformer/layer_1/ff/layer_2/bias'),
      'lack transformer/layer_1/ff/layer_2/bias',
    ),
    (
      lambda v: v.update({'transformer/more': np.zeros(3)}),
      'no place for the arrays transformer/more',
    ),
    (
      lambda v: v.update({'transformer/layer_1/rel_attn/r/kernel': np.eye(3)}),
      r'r/kernel must have shape \(8, 8\), found \(3, 3\)',
    ),
  ],
)
def test_what_does_not_fit_is_named(change, message):
  variables = _variables('hugging_face_div_2')
  change(variables)
  with pytest.raises(InputError, match=message):
    from_tensorflow(variables, _given('hugging_face_div_2'))


def test_what_is_not_told_is_asked_for():
  with pytest.raises(InputError, match='memory_length=.* --config.model.clamp'):
    from_tensorflow(_variables('hugging_face_div_2'), {'attention_span': None})


def test_a_missing_tensorflow_is_answered_with_a_command(tmp_path, monkeypatch):
  (tmp_path / 'model.ckpt-0.index').touch()
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  with pytest.raises(InputError, match=r"pip install 'txl_jax\[tensorflow\]'"):
    read_checkpoint(tmp_path)


@pytest.mark.full
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', CASES)
def test_a_file_that_tensorflow_wrote(tmp_path, name):
  tf = pytest.importorskip('tensorflow')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for variable, array in _variables(name).items():
      tf.compat.v1.get_variable(variable, initializer=array)
    tf.compat.v1.train.get_or_create_global_step()
    session.run(tf.compat.v1.global_variables_initializer())
    saver = tf.compat.v1.train.Saver()
    saver.save(session, str(tmp_path / 'model.ckpt'), global_step=0)
  for path in (tmp_path, tmp_path / 'model.ckpt-0'):
    imported = read_checkpoint(path, _given(name))
    assert imported.form == 'tensorflow'
    _check_losses(imported, name)
