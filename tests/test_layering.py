"""The house itself: import order, sizes, docstrings, and a quiet import."""

import ast
import inspect
import json
import pathlib
import subprocess
import sys

import pytest

import txl_jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'txl_jax'
# Each imports only from the lines above its own.
ORDER = [
  ['errors'],
  ['checks'],
  ['optimizer_config', 'train_config'],
  ['config'],
  ['conversion'],
  ['overrides'],
  ['ops', 'data'],
  ['model'],
  ['parallel'],
  ['evaluation', 'generation', 'interop'],
  ['training'],
  ['report', 'benchmark'],
  ['commands'],
  ['cli'],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FACADE = ['__init__', '__main__']  # re-export and start what is below
PUBLIC = [
  'ModelConfig',
  'TransformerXL',
  'init_params',
  'init_memory',
  'score',
  'score_segments',
  'log_probs',
  'generate',
  'project_memory',
  'load_pretrained',
  'from_official',
]


def _files(*folders: str) -> list[pathlib.Path]:
  return sorted(
    path for name in folders for path in (ROOT / name).rglob('*.py')
  )


def _named(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def _part(path: pathlib.Path) -> str:
  """The part of the package that a file belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def _imported(path: pathlib.Path) -> set[str]:
  """The parts of the package that a file imports, anywhere in it."""
  modules = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{_named(path)}: relative import'
      modules += [f'{node.module}.{alias.name}' for alias in node.names]
  ours = [name.split('.') for name in modules]
  return {parts[1] for parts in ours if parts[0] == 'txl_jax' and parts[1:]}


def test_every_part_has_its_place():
  parts = {_part(path) for path in _files('txl_jax')} - {*FACADE}
  assert parts <= RANK.keys()


def test_each_part_imports_only_from_its_left():
  wrong = []
  for path in _files('txl_jax'):
    part = _part(path)
    if part not in FACADE:
      assert '__init__' not in _imported(path)
      wrong += [
        f'{_named(path)} imports {other}'
        for other in _imported(path) - {part}
        if RANK[other] >= RANK[part]
      ]
  assert not wrong


def test_the_order_is_really_checked():
  """The checker sees imports inside functions, as those of commands are."""
  train = PACKAGE / 'commands' / 'train.py'
  assert {'training', 'report', 'parallel'} <= _imported(train)
  assert 'config' in _imported(PACKAGE / 'model' / 'transformer.py')


@pytest.mark.parametrize(
  'folder', ['txl_jax', 'experiments', 'launch', 'tests']
)
def test_files_and_functions_fit(folder):
  too_long = []
  for path in _files(folder):
    text = path.read_text()
    if text.count('\n') >= 300:
      too_long.append(f'{_named(path)}: {text.count(chr(10))} lines')
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if lines > 60:
          too_long.append(f'{_named(path)}: {node.name} has {lines} lines')
  assert not too_long


def test_public_functions_and_classes_have_docstrings():
  bare = []
  for path in _files('txl_jax'):
    module = ast.parse(path.read_text())
    if not ast.get_docstring(module):
      bare.append(_named(path))
    for node in module.body:
      kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
      public = isinstance(node, kinds) and not node.name.startswith('_')
      if public and not ast.get_docstring(node):
        bare.append(f'{_named(path)}: {node.name}')
  assert not bare


@pytest.mark.parametrize('name', PUBLIC)
def test_the_public_api_is_documented(name):
  item = getattr(txl_jax, name)
  assert callable(item)
  assert len(inspect.getdoc(item)) > 40


# Measures the import beyond jax and flax.linen, and all that it might touch.
PROBE = """
import json, os, sys, time, warnings
warnings.simplefilter('error')
import jax, flax.linen
from jax._src import xla_bridge
environment, arguments = dict(os.environ), list(sys.argv)
values = dict(jax.config.values)
began = time.perf_counter()
import txl_jax
seconds = time.perf_counter() - began
flags = sys.modules.get('absl.flags')
print(json.dumps({
  'seconds': seconds,
  'backends': sorted(xla_bridge._backends),
  'environment_changed': dict(os.environ) != environment,
  'arguments_changed': sys.argv != arguments,
  'settings_changed': dict(jax.config.values) != values,
  'flags_read': bool(flags and flags.FLAGS.is_parsed()),
  'modules': sorted({name.split('.')[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope='module')
def imports() -> list[dict]:
  """What three imports, each in its own process, did."""
  results = []
  for _ in range(3):
    done = subprocess.run(
      [sys.executable, '-c', PROBE, '--no_such_flag=1'],
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stderr == ''
    results.append(json.loads(done.stdout))
  return results


def test_importing_touches_nothing(imports):
  for found in imports:
    assert found['backends'] == []
    assert not found['environment_changed']
    assert not found['arguments_changed']
    assert not found['settings_changed']
    assert not found['flags_read']


def test_importing_brings_no_heavy_package(imports):
  heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'torch'}
  for found in imports:
    assert 'txl_jax' in found['modules']
    assert not heavy.intersection(found['modules'])


def test_importing_takes_less_than_a_second(imports):
  assert min(found['seconds'] for found in imports) < 1
