"""`txl convert`: any format to any other, and exports that can be checked."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

import txl_jax
from txl_jax.cli import main
from txl_jax.commands import convert
from txl_jax.interop import checkpoints
from txl_jax.interop.checkpoints import read_checkpoint
from txl_jax.interop.imported import Imported

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'checkpoints'


@pytest.fixture(scope='module')
def export(tmp_path_factory) -> pathlib.Path:
  """The official model in our format."""
  folder = tmp_path_factory.mktemp('convert') / 'export'
  source = FOLDER / 'official'
  assert main(['convert', f'--from={source}', f'--to={folder}']) == 0
  return folder


def test_an_export_is_read_without_any_framework(export):
  config, params, vocabulary = txl_jax.load_pretrained(export)
  assert (config.n_layers, config.cutoffs) == (2, (10, 20))
  assert params['layers']['attention']['query'].shape == (2, 8, 2, 4)
  assert vocabulary.decode(vocabulary.encode('w3 w0')) == 'w3 w0\n'


def test_an_export_is_checked(export, capsys):
  assert main(['convert', f'--check={export}']) == 0
  assert 'is what it was' in capsys.readouterr().out


def test_a_changed_export_is_found_out(export, tmp_path, capsys):
  folder = tmp_path / 'changed'
  shutil.copytree(export, folder)
  path = folder / 'model.safetensors'
  arrays = safetensors.numpy.load_file(path)
  arrays['layers.attention.value'] *= 1.01
  safetensors.numpy.save_file(arrays, path)
  assert main(['convert', f'--check={folder}']) == 2
  assert 'the model is not what it was' in capsys.readouterr().err


@pytest.mark.parametrize(
  'text', ['{}', '[]', '{"tokens": [1], "losses": [2]}', '{']
)
def test_a_damaged_verification_is_named(export, tmp_path, capsys, text):
  folder = tmp_path / 'damaged'
  shutil.copytree(export, folder)
  (folder / 'verification.json').write_text(text)
  assert main(['convert', f'--check={folder}']) == 2
  assert 'verification.json' in capsys.readouterr().err


def test_every_format_is_offered():
  assert convert.FORMATS == checkpoints.FORMATS


def test_from_one_implementation_to_another(tmp_path):
  """NVIDIA's spans are one longer, Hugging Face's memory begins with zeros."""
  source, middle = FOLDER / 'nvidia', tmp_path / 'middle'
  arguments = [
    'convert',
    f'--from={source}',
    f'--to={middle}',
    '--format=hugging_face',
    '--config.model.attention_span=7',
    '--config.model.memory_start=zeros',
  ]
  assert main(arguments) == 0
  there = read_checkpoint(middle)
  assert there.form == 'hugging_face'
  assert there.vocabulary.words[:2] == ['<eos>', 'w0']
  first = read_checkpoint(source)
  assert (first.config.attention_span, there.config.attention_span) == (8, 7)
  np.testing.assert_array_equal(
    there.params['softmax']['cluster_weight'],
    first.params['softmax']['cluster_weight'],
  )


def test_a_run_is_converted(export, tmp_path, monkeypatch):
  """Of a run only the reading is its own."""
  model = read_checkpoint(export)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'run.json').write_text('{}')

  class Run:
    config = type('Config', (), {'model': model.config})
    params, vocabulary, step = model.params, model.vocabulary, 12

  monkeypatch.setattr('txl_jax.training.run.load_run', lambda *_: Run)
  folder = tmp_path / 'official'
  arguments = ['convert', f'--from={tmp_path / "run"}', f'--to={folder}']
  assert main([*arguments, '--format=official']) == 0
  assert read_checkpoint(folder).config == model.config
  assert main([*arguments[:2], '--to=x', '--config.model.d_ff=3']) == 2


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--from is missing'),
    (['--from=x'], '--to is missing'),
    (['--check=x', '--to=y'], '--check stands alone'),
    (['--check=x', '--more'], "'--more' is no argument"),
    (['--from=nowhere', '--to=new'], 'no file or folder nowhere'),
    (['--from=x', '--to=.'], '--to: . is not a new or empty folder'),
    (['--from=x', '--to=new', '--config.train.steps=3'], 'not part of a model'),
    (['--from=x', '--to=new', '--config.model.d_fff=3'], 'did you mean'),
  ],
)
def test_mistakes_are_answered_first(
  arguments, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  assert main(['convert', *arguments]) == 2
  assert message in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_memory_of_a_run_comes_along(tmp_path):
  source, folder = FOLDER / 'nvidia', tmp_path / 'export'
  assert main(['convert', f'--from={source}', f'--to={folder}']) == 0
  found: Imported = read_checkpoint(folder)
  assert found.step == 77
  assert found.memory.hidden_NBMD.shape == (2, 4, 7, 8)
  assert found.memory.valid_B.tolist() == [3] * 4
  # Rows of a device are next to each other, whatever part they came in.
  rng = np.random.default_rng(2)
  parts = rng.normal(size=(2, 2, 2, 3, 1, 8)).astype(np.float32)
  theirs_NMBD = np.concatenate(
    [parts[0][0], parts[1][0], parts[0][1], parts[1][1]], axis=2
  )
  ours_NBMD = np.asarray(found.memory.hidden_NBMD)[:, :, -3:]
  np.testing.assert_array_equal(ours_NBMD, theirs_NMBD.swapaxes(1, 2))
  assert json.loads((folder / 'verification.json').read_text())['losses']
