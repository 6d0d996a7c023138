"""What does not fit is named, with what was found and what was expected."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from txl_jax.errors import InputError
from txl_jax.interop.checkpoints import read_checkpoint, write_checkpoint
from txl_jax.interop.torch_files import load_torch
from txl_jax.interop.torch_writing import save_torch

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'checkpoints'
# Where the tensors are, and the names of some of them.
KINDS = {
  'nvidia': ('checkpoint_best.pt', 'r_w_bias', 'crit.out_layers_biases.1'),
  'hugging_face_div_1': (
    'pytorch_model.bin',
    'transformer.layers.1.dec_attn.r_w_bias',
    'crit.cluster_bias',
  ),
  'official': (
    'state_dict.pt',
    'layers.1.dec_attn.o_net.weight',
    'crit.out_layers.2.bias',
  ),
}
UNTOLD = dict(memory_length=7, attention_span=7, clamp_length=4, pre_norm=False)


def _changed(tmp_path: pathlib.Path, kind: str, change) -> InputError:
  """The error after a change of the tensors."""
  folder = tmp_path / kind
  shutil.copytree(FOLDER / kind, folder)
  path = folder / KINDS[kind][0]
  loaded = load_torch(FOLDER / kind / path.name)
  arrays = loaded.get('model_state', loaded)
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  change(arrays)
  value = arrays
  if 'model_state' in loaded:
    value = {'model_config': loaded['model_config'], 'model_state': arrays}
  save_torch(path, value)
  given = UNTOLD if kind == 'official' else {}
  with pytest.raises(InputError) as error:
    read_checkpoint(path, given)
  assert str(folder) in str(error.value)
  return error


@pytest.mark.parametrize('kind', KINDS)
def test_a_tensor_of_another_shape(tmp_path, kind):
  for number, name in enumerate(KINDS[kind][1:]):
    shapes = []

    def change(arrays, name=name, shapes=shapes):
      shapes.append(arrays[name].shape)
      arrays[name] = np.zeros((*shapes[0][:-1], 3), np.float32)
      shapes.append(arrays[name].shape)

    error = _changed(tmp_path / str(number), kind, change)
    expected, found = map(re.escape, map(str, shapes))
    assert error.match(f'{name} must have shape {expected}, found {found}')


@pytest.mark.parametrize('kind', KINDS)
def test_a_missing_tensor(tmp_path, kind):
  for number, name in enumerate(KINDS[kind][1:]):
    error = _changed(tmp_path / str(number), kind, lambda a, n=name: a.pop(n))
    assert error.match(f'lack {name}')


@pytest.mark.parametrize('kind', KINDS)
def test_a_surplus_tensor(tmp_path, kind):
  surplus = {'layers.9.more': np.zeros(3, np.float32)}
  error = _changed(tmp_path, kind, lambda arrays: arrays.update(surplus))
  assert error.match('no place for the arrays layers.9.more')


def test_a_vocabulary_of_another_size(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_text('<eos>\na\nb\n')
  with pytest.raises(InputError, match='has 3 symbols, expected the 40 of'):
    read_checkpoint(FOLDER / 'official', vocabulary=path)


@pytest.mark.parametrize(
  ('form', 'message'),
  [
    ('official', 'untie_biases is True, which this format cannot say'),
    ('nvidia', 'untie_biases is True, which this format cannot say'),
    ('other', 'must be one of export, official, nvidia, hugging_face'),
  ],
)
def test_what_a_format_cannot_say_is_not_written(tmp_path, form, message):
  imported = read_checkpoint(FOLDER / 'hugging_face_div_1')
  with pytest.raises(InputError, match=message):
    write_checkpoint(form, tmp_path / 'folder', imported)
  assert not (tmp_path / 'folder').exists()


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ({'model_state': {}}, 'lacks model_config'),
    ({'model_state': 3, 'model_config': {}}, 'no checkpoint of the form'),
    ({'word_emb.emb_layers.0.weight': 3}, 'lack layers.0.pos_ff.CoreNet.0'),
    ({'transformer.word_emb.emb_layers.0.weight': 3}, 'of a known'),
    ([1, 2], 'no Transformer-XL of a known'),
  ],
)
def test_files_of_another_form(tmp_path, value, message):
  save_torch(tmp_path / 'model.pt', value)
  with pytest.raises(InputError, match=message):
    read_checkpoint(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  imported = read_checkpoint(FOLDER / 'official')
  with pytest.raises(InputError, match='cannot write .*file/folder'):
    write_checkpoint('official', tmp_path / 'file' / 'folder', imported)


def test_sizes_of_the_options_are_not_made_before_they_are_checked(tmp_path):
  shutil.copytree(FOLDER / 'nvidia', tmp_path / 'model')
  path = tmp_path / 'model' / 'checkpoint_best.pt'
  loaded = load_torch(path)
  arrays = {n: np.asarray(a) for n, a in loaded['model_state'].items()}
  options = {**loaded['model_config'], 'd_inner': 2**50}
  save_torch(path, {'model_config': options, 'model_state': arrays})
  with pytest.raises(InputError, match=f'must have shape .*{2**50}'):
    read_checkpoint(path)


def test_a_folder_without_a_model_and_no_folder(tmp_path):
  with pytest.raises(InputError, match='no checkpoint of a known'):
    read_checkpoint(tmp_path)
  with pytest.raises(InputError, match='no file or folder'):
    read_checkpoint(tmp_path / 'nowhere')


def test_another_attention_of_hugging_face(tmp_path):
  shutil.copytree(FOLDER / 'hugging_face_div_1', tmp_path / 'model')
  path = tmp_path / 'model' / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'attn_type': 2}))
  with pytest.raises(InputError, match='attn_type must be 0, found 2'):
    read_checkpoint(tmp_path / 'model')


def test_fields_that_change_shapes_do_not_fit_an_export(tmp_path):
  imported = read_checkpoint(FOLDER / 'official')
  write_checkpoint('export', tmp_path / 'model', imported)
  longer = read_checkpoint(tmp_path / 'model', {'memory_length': 20})
  assert longer.config.memory_length == 20
  with pytest.raises(InputError, match='not those of .* config.model.d_ff=13'):
    read_checkpoint(tmp_path / 'model', {'d_ff': 13})
