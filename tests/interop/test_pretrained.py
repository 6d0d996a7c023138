"""Our export format: exact, and clear about what does not fit."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import txl_jax
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.errors import InputError

CONFIG = txl_jax.ModelConfig(
  vocab_size=257,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  cutoffs=(20, 100),
  div_val=2,
)


@pytest.fixture
def exported(tmp_path):
  params = txl_jax.init_params(CONFIG, jax.random.key(0))
  txl_jax.save_pretrained(tmp_path, CONFIG, params, ByteVocabulary())
  return tmp_path, params


def test_round_trip_is_exact(exported):
  folder, params = exported
  config, loaded, vocabulary = txl_jax.load_pretrained(folder)
  assert config == CONFIG
  assert vocabulary.decode(vocabulary.encode('né')) == 'né'
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params)):
    np.testing.assert_array_equal(ours, theirs)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(InputError, match='nowhere'):
    txl_jax.load_pretrained(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'config.json', 'vocabulary.json']
)
def test_a_truncated_file_is_named(exported, name):
  folder, _ = exported
  content = (folder / name).read_bytes()
  (folder / name).write_bytes(content[: len(content) // 2])
  with pytest.raises(InputError, match=name):
    txl_jax.load_pretrained(folder)


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'config.json', 'vocabulary.json']
)
def test_a_missing_file_is_named(exported, name):
  folder, _ = exported
  (folder / name).unlink()
  with pytest.raises(InputError, match=name):
    txl_jax.load_pretrained(folder)


@pytest.mark.parametrize('name', ['config.json', 'vocabulary.json'])
@pytest.mark.parametrize('text', ['3', '[1]', 'null', '"text"', '{}'])
def test_json_of_another_form_is_named(exported, name, text):
  folder, _ = exported
  (folder / name).write_text(text)
  with pytest.raises(InputError, match=name):
    txl_jax.load_pretrained(folder)


@pytest.mark.parametrize(
  ('field', 'value'), [('n_layers', 0), ('n_layers', '2'), ('cutoffs', [0])]
)
def test_a_field_out_of_range_is_named_with_its_file(exported, field, value):
  folder, _ = exported
  fields = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**fields, field: value}))
  with pytest.raises(InputError, match=f'config.json.*{field}'):
    txl_jax.load_pretrained(folder)


def test_an_unknown_field_is_named(exported):
  folder, _ = exported
  fields = json.loads((folder / 'config.json').read_text())
  fields['n_layer'] = fields.pop('n_layers')
  (folder / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(InputError, match='did you mean .*n_layers'):
    txl_jax.load_pretrained(folder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda a: a.pop('softmax.bias'), 'lacks array softmax.bias'),
    (lambda a: a.update(more=np.zeros(3)), 'has the unknown array more'),
    (
      lambda a: a.update({'softmax.bias': np.zeros(3, np.float32)}),
      r'softmax.bias must have shape \(257,\), found \(3,\)',
    ),
  ],
)
def test_arrays_that_do_not_fit_are_named(exported, change, message):
  folder, _ = exported
  path = folder / 'model.safetensors'
  arrays = safetensors.numpy.load_file(path)
  change(arrays)
  safetensors.numpy.save_file(arrays, path)
  with pytest.raises(InputError, match=message):
    txl_jax.load_pretrained(folder)
