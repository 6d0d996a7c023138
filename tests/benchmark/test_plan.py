"""Plans: on the devices at hand always, for TPUs where their compiler is."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import pytest

from txl_jax.benchmark import plan as lib
from txl_jax.benchmark import plan_inference as inference
from txl_jax.benchmark import plan_program
from txl_jax.cli import main
from txl_jax.config import (
  Config,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  TrainConfig,
)
from txl_jax.errors import InputError
from txl_jax.parallel.mesh import make_mesh
from txl_jax.parallel.topology import topology_devices

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = Config(
  ModelConfig(
    vocab_size=128,
    n_layers=3,
    n_heads=2,
    d_model=32,
    d_head=16,
    d_ff=64,
    memory_length=8,
    tie_weights=False,
  ),
  optimizer=OptimizerConfig(warmup_steps=0),
  train=TrainConfig(batch_size=16, segment_length=8),
)
has_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs libtpu'
)


def _plan(config=CONFIG):
  return lib.plan_training(config, jax.devices(), say=lambda line: None)


@pytest.fixture(scope='module')
def plan() -> dict:
  return _plan()


def test_sizes_are_those_of_the_state(plan):
  n_bytes = 4 * plan['parameters']
  assert plan['bytes']['parameters'] == n_bytes
  # Adam has two moments of each parameter, and counts.
  assert 2 * n_bytes <= plan['bytes']['optimizer'] < 2 * n_bytes + 100
  # Rows are divided among the devices; there is a number for each row.
  assert plan['bytes']['memory'] == (3 * 8 * 32 * 4 + 4) * 16 // 8
  assert plan['needed_bytes'] > sum(plan['bytes'].values()) / 2


def test_gradients_are_summed_and_nothing_else_is_exchanged(plan):
  n_bytes = 4 * plan['parameters']
  found = {each['kind'] for each in plan['collectives']}
  assert found == {'all-reduce'}
  total = sum(each['payload'] for each in plan['collectives'])
  # Once each; W_R's as that of the projected table, which has 24 rows for 32.
  assert 0.95 * n_bytes < total < 1.05 * n_bytes


def test_parameters_divide_over_fsdp():
  divided = _plan(dataclasses.replace(CONFIG, mesh=MeshConfig(1, 8, 1)))
  whole = 4 * divided['parameters']
  assert whole / 8 <= divided['bytes']['parameters'] < whole / 4
  kinds = {each['kind'] for each in divided['collectives']}
  assert 'all-gather' in kinds


def test_rows_that_do_not_divide_are_refused():
  train = dataclasses.replace(CONFIG.train, batch_size=12)
  with pytest.raises(InputError, match='batch_size is 12, expected a multiple'):
    _plan(dataclasses.replace(CONFIG, train=train))


def test_too_large_a_program_is_a_finding(monkeypatch):
  said = 'RESOURCE_EXHAUSTED: Ran out of memory. Used 20.5G of 15.75G hbm.'

  def fail(*_):
    raise lib.TooLargeError(jax.errors.JaxRuntimeError(said))

  monkeypatch.setattr(lib, '_compile', fail)
  found = _plan()
  assert found['fits'] is False
  assert found['needed_bytes'] == 20.5 * 1024**3


def test_the_command(plan, capsys, monkeypatch):
  monkeypatch.setattr(lib, 'plan_training', lambda *_, **__: plan)
  experiment = ROOT / 'experiments' / 'quickstart.py'
  assert main(['plan', f'--config={experiment}']) == 0
  said = capsys.readouterr()
  line = json.loads(said.out)
  assert line['devices'] == 8 and line['topology'] is None
  assert 'all-reduce over data: ' in said.err


def test_a_program_that_is_too_large_is_told(plan, capsys, monkeypatch):
  large = {**plan, 'fits': False, 'needed_bytes': 22_000_000_000}
  monkeypatch.setattr(lib, 'plan_training', lambda *_, **__: large)
  experiment = ROOT / 'experiments' / 'quickstart.py'
  assert main(['plan', f'--config={experiment}']) == 0
  assert '22 GB: does NOT fit; lower config.train' in capsys.readouterr().err


@pytest.mark.parametrize('taken', ['xla', 'splash'])
def test_what_keeps_a_tpu_from_its_kernel_is_told(
  taken, plan, capsys, monkeypatch
):
  there = {**plan, 'device_kind': 'TPU v5 lite', 'attention': taken}
  monkeypatch.setattr(lib, 'plan_training', lambda *_, **__: there)
  assert main(['plan', f'--config={ROOT / "experiments/quickstart.py"}']) == 0
  said = capsys.readouterr().err
  assert f'attention by {taken}' in said
  assert ("position_dropout='feature'" in said) == (taken == 'xla')


def test_evaluation_divides_rows_and_keeps_parameters_whole():
  settings = EvalConfig(batch_size=16, segment_length=8, memory_length=24)
  config = dataclasses.replace(CONFIG, eval=settings)
  found = inference.plan_evaluation(config, jax.devices(), say=lambda _: None)
  assert found['bytes']['parameters'] == 4 * found['parameters']
  # Keys and values of 24 positions, for two rows on each device.
  assert found['bytes']['memory'] >= 2 * 3 * 24 * 32 * 4 * 2
  assert found['needed_bytes'] > found['bytes']['parameters']
  kinds = {each['kind'] for each in found['collectives']}
  assert not kinds or kinds <= {'all-gather'}  # of the sums, to be read


def test_generation_is_planned_for_one_device():
  settings = EvalConfig(batch_size=16, segment_length=8, memory_length=24)
  config = dataclasses.replace(CONFIG, eval=settings)
  few, many = (
    inference.plan_generation(config, jax.devices(), n, say=lambda _: None)
    for n in (1, 4)
  )
  assert few['devices'] == 1 and not few['collectives']
  # Keys and values of 24 positions at least, for three rows more.
  added = many['bytes']['memory'] - few['bytes']['memory']
  assert 3 <= added / (2 * 3 * 24 * 32 * 4) < 16


@pytest.mark.parametrize(
  'options, words',
  [
    (['--batch=0'], '--batch must be at least 1, found 0'),
    (['--program=eval', '--batch=12'], 'eval.batch_size is 12, expected a mul'),
  ],
)
def test_options_that_do_not_go_together(options, words, capsys):
  experiment = f'--config={ROOT / "experiments" / "quickstart.py"}'
  assert main(['plan', experiment, *options]) != 0
  assert words in capsys.readouterr().err


@pytest.mark.parametrize(
  'name', ['v5e', 'v9:2x2', 'v5e:2', 'v5e:2xx', 'h100:8']
)
def test_what_is_no_topology_is_refused(name):
  with pytest.raises(InputError, match='--topology must be one of v4, v5e'):
    topology_devices(name)


def test_without_its_compiler_there_is_no_tpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'txl_jax\[tpu\]'"):
    topology_devices('v5e:2x2')


@pytest.mark.parametrize(
  'module, expected',
  [
    ('attention', 'mosaic_gpu'),
    ('attention/projections', 'xla'),
    ('attention_norm', 'xla'),
    ('feed_forward', 'xla'),
  ],
)
def test_kernels_of_attention_are_told_from_others(module, expected):
  call = 'custom-call(x), custom_call_target="mosaic_gpu_v2"'
  text = f'{call}, metadata={{op_name="jit(step)/Layer/{module}/body"}}'
  assert plan_program._attention(CONFIG.model, text) == expected


@has_compiler
@pytest.mark.slow
def test_a_plan_for_a_tpu():
  found = lib.plan_training(
    CONFIG, topology_devices('v5e:2x4'), say=lambda line: None
  )
  assert found['devices'] == 8 and found['fits']
  assert found['attention'] == 'xla'  # as elements of the table are dropped
  assert found['limited_by'] in found['milliseconds']
  # Parameters and their moments are read and written.
  state = found['bytes']['parameters'] + found['bytes']['optimizer']
  assert 2 * state < found['traffic'] < 20 * state
  kinds = {each['kind'] for each in found['collectives']}
  assert 'all-gather' not in kinds


@has_compiler
@pytest.mark.slow
def test_a_tpu_gets_its_kernel():
  model = dataclasses.replace(CONFIG.model, position_dropout='feature')
  found = lib.plan_training(
    dataclasses.replace(CONFIG, model=model),
    topology_devices('v5e:2x4'),
    say=lambda line: None,
  )
  assert found['attention'] == 'splash'


@has_compiler
def test_a_shape_that_does_not_exist_is_refused():
  with pytest.raises(InputError, match='--topology=v5e:3x5: '):
    topology_devices('v5e:3x5')


@has_compiler
@pytest.mark.parametrize('topology', ('v5e:16x16', 'v6e:16x16', 'v5p:8x8x16'))
@pytest.mark.parametrize('fsdp, tensor', [(8, 1), (2, 2), (32, 4)])
def test_axes_of_a_mesh_may_be_parts_of_those_of_a_slice(
  topology, fsdp, tensor
):
  devices = topology_devices(topology)
  mesh = make_mesh(MeshConfig(-1, fsdp, tensor), devices)
  assert mesh.devices.shape == (
    len(devices) // fsdp // tensor,
    fsdp,
    tensor,
  )
  assert set(mesh.devices.flat) == set(devices)
