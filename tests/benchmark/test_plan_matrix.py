"""Every experiment compiles for TPUs that are not there.

Rows are as many as chips, as the published batches do not divide among most of
the slices.
"""

import importlib.util
import pathlib
import runpy
import sys

import jax
import pytest

from txl_jax.benchmark import plan as training
from txl_jax.benchmark import plan_inference as inference
from txl_jax.commands.arguments import read_config
from txl_jax.model.functional import init_params
from txl_jax.parallel.topology import topology_devices

FOLDER = pathlib.Path(__file__).parents[2] / 'experiments'
EXPERIMENTS = sorted(
  path.stem for path in FOLDER.glob('*.py') if 'ablations' not in path.stem
)
sys.path.append(str(FOLDER))  # as some import others
VARIANTS = [
  f'{path.stem}.py:{row}'
  for path in sorted(FOLDER.glob('*.py'))
  for row in runpy.run_path(str(path)).get('VARIANTS', ())
]
TOPOLOGIES = ('v5e:2x4', 'v5e:16x16', 'v5p:8x8x16', 'v6e:16x16', 'v4:4x4x8')
# Too large for a chip of v5e: its parameters are divided.
DIVIDED = ('lm1b_large',)
# Widths of 410, 2,100 and 41 become 416, 2,104 and 48.
PADDED = 1.02
PROGRAMS = ('train', 'eval', 'generate')
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs libtpu'
)


def _gradient_bytes(config):
  """The least and the most that summing each gradient once takes.

  Those of layers are bfloat16. That of W_R may be summed as it is, or as that
  of the table which it projects.
  """
  model = config.model
  params = jax.eval_shape(
    lambda key: init_params(model, key), jax.random.key(0)
  )
  weights = total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    narrow = 'layers' in name and 'norm' not in name
    n_bytes = leaf.size * (2 if narrow else 4)
    if 'relative' in name:
      weights += n_bytes
    else:
      total += n_bytes
  K = config.train.segment_length + model.memory_length
  tables = 2 * K * model.n_layers * model.n_heads * model.d_head
  return total + min(weights, tables), total + max(weights, tables)


def _compiles(name, topology, program):
  path = name if ':' in name else f'{name}.py'
  devices = topology_devices(topology)
  rows, divided = len(devices), name in DIVIDED
  config = read_config(
    str(FOLDER / path),
    [
      '--config.model.dtype=bfloat16',
      f'--config.train.batch_size={rows}',
      f'--config.eval.batch_size={rows}',
      '--config.eval.stride=None',
      f'--config.mesh.fsdp={8 if divided else 1}',
    ],
  )
  quiet = dict(say=lambda line: None)
  if program == 'train':
    plan = training.plan_training(config, devices, **quiet)
  elif program == 'eval':
    plan = inference.plan_evaluation(config, devices, **quiet)
  elif config.model.position_encoding in ('learned', 'sinusoid'):
    pytest.skip('does not generate')
  else:
    plan = inference.plan_generation(config, devices, 1, **quiet)
  assert plan['fits']
  kinds = {each['kind'] for each in plan['collectives']}
  if program == 'train' and not divided:
    # Gradients are summed; no activation and no memory leaves its chip.
    assert kinds == {'all-reduce'}
    total = sum(each['payload'] for each in plan['collectives'])
    least, most = _gradient_bytes(config)
    assert 0.98 * least < total < PADDED * most


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, program',
  [
    *(('quickstart', program) for program in PROGRAMS),
    *(('enwik8_base', 'train'), ('wt103_base', 'train')),
  ],
)
def test_some_compile_for_a_small_slice(name, program):
  _compiles(name, 'v5e:2x4', program)


@pytest.mark.full
@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('topology', TOPOLOGIES)
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_all_compile_for_all(name, topology, program):
  _compiles(name, topology, program)


@pytest.mark.full
@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('name', VARIANTS)
def test_variants_compile_for_a_small_slice(name, program):
  _compiles(name, 'v5e:2x4', program)
