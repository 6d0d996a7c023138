"""`txl bench train --devices`: a small model on some devices, and mistakes."""

import json
import weakref

import jax
import pytest

from txl_jax.benchmark import measure
from txl_jax.benchmark.scaling import measure_scaling
from txl_jax.cli import main
from txl_jax.config import Config, MeshConfig, ModelConfig, TrainConfig
from txl_jax.errors import InputError

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(vocab_size=30, n_layers=1, n_heads=2)
  config.model.update(d_model=16, d_head=8, d_ff=32, memory_length=4)
  config.model.dropout = 0.0  # compiles sooner
  config.train.update(batch_size=6, segment_length=4, segments_per_step=1)
  return config
"""
CONFIG = Config(
  ModelConfig(vocab_size=30, n_layers=1, n_heads=2, d_model=16, d_head=8),
  train=TrainConfig(batch_size=4, segment_length=4),
)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  path = tmp_path_factory.mktemp('scaling') / 'experiment.py'
  path.write_text(EXPERIMENT)
  return f'--config={path}'


def _mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> dict:
  return {'data': data, 'fsdp': fsdp, 'tensor': tensor}


@pytest.fixture
def at_birth(monkeypatch) -> list[tuple[int, int]]:
  """For each compiled step, how many others and what arrays there were."""
  alive, found = weakref.WeakSet(), []

  class Watched(measure.Subject):
    def __init__(self, *arguments):
      found.append((len(alive), len(jax.live_arrays())))
      super().__init__(*arguments)
      alive.add(self)

  monkeypatch.setattr(measure, 'Subject', Watched)
  return found


def test_rows_grow_with_the_devices(experiment, capsys, at_birth):
  options = ['--devices=2,1', '--batch=4', '--steps=1']
  assert main(['bench', 'train', experiment, *options]) == 0
  printed = capsys.readouterr()
  assert 'devices: 2, rows: 4\n' in printed.err
  assert 'devices: 1, rows: 2\n' in printed.err
  two, one = map(json.loads, printed.out.splitlines())
  assert (two['mesh'], one['mesh']) == (_mesh(data=2), _mesh())
  assert (two['devices'], two['batch']) == (2, 4)
  assert (one['devices'], one['batch']) == (1, 2)
  assert two['scaling'] == one['scaling'] == 'weak'
  assert two['efficiency'] == 1
  compared = one['tokens_per_second'] / (two['tokens_per_second'] / 2)
  assert one['efficiency'] == pytest.approx(compared, rel=1e-3)
  assert two['peak_memory_bytes'] is one['peak_memory_bytes'] is None
  # The first was freed before the second began.
  (_, arrays), second = at_birth
  assert second == (0, arrays)


def test_the_same_rows_on_a_mesh_that_divides_parameters(experiment, capsys):
  options = ['--devices=3', '--scaling=strong', '--steps=1']
  options += ['--config.mesh.fsdp=-1', '--config.mesh.data=1']
  assert main(['bench', 'train', experiment, *options]) == 0
  line = json.loads(capsys.readouterr().out)
  assert (line['batch'], line['mesh']) == (6, _mesh(fsdp=3))
  assert (line['scaling'], line['efficiency']) == ('strong', 1)


@pytest.mark.parametrize(
  'options, words',
  [
    ('--devices=1,two', 'whole numbers of at least 1, such as 1,2,4, found'),
    ('--devices=', "found ''"),
    ('--devices=1.5', "found '1.5'"),
    ('--devices=0,1', "found '0,1'"),
    ('--devices=-1', "found '-1'"),
    ('--devices=1,2,1', "must be different numbers, found '1,2,1'"),
    ('--devices=2,16', 'asks for 16, but there are 8 of the kind cpu'),
    ('--devices=2 --compare=xla,reference', 'do not go together'),
    ('--scaling=weak', '--scaling needs --devices'),
    ('--devices=2 --batch=3', 'batch_size is 3, expected a multiple of the 2'),
    ('--devices=1,4 --scaling=strong', 'is 6, expected a multiple of the 4'),
    (
      '--devices=2,1 --config.mesh.tensor=2',
      'config.mesh.fsdp x config.mesh.tensor is 1 x 2, expected a divisor of',
    ),
    (
      '--devices=2,3 --batch=3 --config.mesh.data=1 --config.mesh.tensor=-1',
      'is 3 on 2 devices and would be 4.5 on 3, expected a whole number',
    ),
  ],
)
def test_mistakes_are_one_sentence_each(
  experiment, capsys, monkeypatch, options, words
):
  # Before anything is compiled.
  monkeypatch.setattr(measure, 'Subject', None)
  assert main(['bench', 'train', experiment, *options.split()]) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  assert words in printed.err and printed.err.count('\n') == 1


def test_all_processes_take_part(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  lines = measure_scaling(
    *(CONFIG, [8, 4], 1),
    **dict(scaling='weak', breakdown=False, say=print),
  )
  with pytest.raises(InputError, match='must be 8, those of all 2 processes'):
    next(lines)


@pytest.mark.parametrize(
  'mesh, scaling, plans',
  [
    (MeshConfig(), 'weak', [(4, _mesh(1)), (16, _mesh(4)), (32, _mesh(8))]),
    (MeshConfig(), 'strong', [(4, _mesh(1)), (4, _mesh(4))]),
    (
      MeshConfig(-1, 1, 2),
      'weak',
      [(4, _mesh(tensor=2)), (8, _mesh(2, tensor=2)), (12, _mesh(3, 1, 2))],
    ),
    (MeshConfig(1, -1, 1), 'weak', [(4, _mesh(fsdp=4)), (2, _mesh(fsdp=2))]),
  ],
)
def test_rows_and_meshes(monkeypatch, mesh, scaling, plans):
  monkeypatch.setattr('txl_jax.benchmark.scaling.measure_training', _measured)
  counts = [m['data'] * m['fsdp'] * m['tensor'] for _, m in plans]
  config = Config(CONFIG.model, train=CONFIG.train, mesh=mesh)
  lines = measure_scaling(
    *(config, counts, 1),
    **dict(scaling=scaling, breakdown=False, say=lambda _: None),
  )
  assert [(line['batch'], line['mesh']) for line in lines] == plans


def _measured(configs, steps, *, mesh, **_):
  (config,) = configs
  rows = config.train.batch_size
  speeds = {'tokens_per_second': 7.0, 'peak_memory_bytes': 9}
  yield {'batch': rows, 'mesh': dict(mesh.shape), **speeds}


def test_one_count_has_a_peak_of_its_own(monkeypatch):
  monkeypatch.setattr('txl_jax.benchmark.scaling.measure_training', _measured)
  options = dict(scaling='weak', breakdown=False, say=lambda _: None)
  (line,) = measure_scaling(CONFIG, [2], 1, **options)
  assert line['peak_memory_bytes'] == 9
  lines = list(measure_scaling(CONFIG, [2, 4], 1, **options))
  assert [each['peak_memory_bytes'] for each in lines] == [None, None]
  # As fast with twice the devices.
  assert [each['efficiency'] for each in lines] == [1, 0.5]
