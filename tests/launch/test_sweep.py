"""`launch/sweep.py`: points of a grid, and the table of their results."""

import json
import os
import pathlib
import runpy
import shlex
import subprocess
import sys

import pytest
from runs import LAUNCH, QUICKSTART, ROOT, write_script

from txl_jax.conversion import from_config_dict, to_config_dict

main = runpy.run_path(str(LAUNCH / 'sweep.py'))['main']
GRID = ['--grid=train.seed=0,1', '--grid=optimizer.learning_rate=1e-3,3e-3']
SHARED = '--config.train.steps=2200'


@pytest.fixture
def sweep(tmp_path) -> list[str]:
  """What follows the action on the command line."""
  return [f'{tmp_path}/rates', f'--config={QUICKSTART}', *GRID, SHARED]


def _points(sweep: list[str]) -> list[list[str]]:
  """The commands that a sweep stands for."""
  folder, experiment = sweep[:2]
  return [
    ['txl', 'train', experiment, f'--workdir={folder}/00{i}', SHARED]
    + [f'--config.train.seed={seed}']
    + [f'--config.optimizer.learning_rate={rate}']
    for i, (seed, rate) in enumerate(
      (seed, rate) for seed in (0, 1) for rate in ('1e-3', '3e-3')
    )
  ]


def _printed(capsys, *arguments: str) -> list[list[str]]:
  assert main(['--dry-run', *arguments]) == 0
  return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_each_point_is_a_command(sweep, capsys):
  assert _printed(capsys, 'local', *sweep) == _points(sweep)


def test_tpus_are_one_for_each_point(sweep, capsys):
  printed = _printed(capsys, 'tpu', *sweep, '--', '--zone=z', '--spot')
  program = str(LAUNCH / 'tpu.sh')
  for i, (line, point) in enumerate(zip(printed, _points(sweep), strict=True)):
    begin = [program, 'run', f'rates-00{i}', '--zone=z', '--spot', '--']
    assert line == begin + point


def test_the_array_makes_the_same_points(sweep, capsys, tmp_path):
  (line,) = _printed(capsys, 'slurm', *sweep, '--', '--gpus-per-node=1')
  sbatch = ['sbatch', '--array=0-3', '--gpus-per-node=1']
  assert line[:5] == [*sbatch, f'{LAUNCH}/slurm.sbatch', f'{LAUNCH}/sweep.py']
  write_script(tmp_path / 'bin' / 'txl', 'printf "%s\\n" txl "$@"')
  path = f'{tmp_path / "bin"}:{os.environ["PATH"]}'
  variables = {'PATH': path, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, *line[4:]],
    env={**os.environ, **variables, 'SLURM_ARRAY_TASK_ID': '2'},
    capture_output=True,
    text=True,
  )
  assert done.stdout.splitlines() == _points(sweep)[2]


def test_points_run_one_after_the_other(sweep, tmp_path, monkeypatch):
  said = tmp_path / 'said'
  script = f'echo "$3" >>{said}; [[ $3 != *1 ]] || exit 3'
  write_script(tmp_path / 'bin' / 'txl', script)
  monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=os.pathsep)
  assert main(['local', *sweep]) == 3
  works = [f'{point[3]}\n' for point in _points(sweep)]
  assert said.read_text() == ''.join(works)


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['local', 'a'], '--config and at least one --grid are needed'),
    (['--grid=train.seed='], "SECTION.FIELD=VALUE,..., found 'train.seed='"),
    (['--grid=train.sed=1'], 'did you mean config.train.seed'),
    (['--grid=train.seed=x'], 'seed'),
    (['--dry-rum'], '--dry-rum'),
    (['point'], 'SLURM_ARRAY_TASK_ID must be below 4, found '),
  ],
)
def test_mistakes_start_nothing(sweep, capsys, monkeypatch, arguments, words):
  monkeypatch.delenv('SLURM_ARRAY_TASK_ID', raising=False)
  if arguments == ['point']:
    arguments = [*arguments, *sweep]
  elif arguments[0] != 'local':
    arguments = ['local', *sweep, *arguments]
  assert main(arguments) == 2
  said = capsys.readouterr()
  assert words in said.err and said.err.count('\n') == 1
  assert not said.out


def _write_run(
  folder: pathlib.Path, rate: float, validations: list[float], test: list[float]
) -> None:
  values = to_config_dict(from_config_dict({'model': {'vocab_size': 9}}))
  values.optimizer.learning_rate = rate
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(values.to_json())
  lines = [
    dict(step=i + 1, split=split, loss=loss)
    for split, losses in (('validation', validations), ('test', test))
    for i, loss in enumerate(losses)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)


def test_the_table_has_the_best_run_first(tmp_path, capsys):
  _write_run(tmp_path / '000', 1e-3, [3.0, 2.0, 2.5], [2.25])
  _write_run(tmp_path / '001', 2e-3, [1.5], [])
  _write_run(tmp_path / '002', 3e-3, [], [])
  _write_run(tmp_path / '003', 4e-3, [10.5], [])
  assert main(['table', str(tmp_path)]) == 0
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  head = 'run optimizer.learning_rate step of valid test'
  assert rows == [
    head.split(),
    ['001', '0.002', '1', '400000', '1.5000', '-'],
    ['000', '0.001', '3', '400000', '2.0000', '2.2500'],
    ['003', '0.004', '1', '400000', '10.5000', '-'],
    ['002', '0.003', '0', '400000', '-', '-'],
  ]
  assert main(['table', str(tmp_path / '000')]) == 2
  assert 'has no work directories' in capsys.readouterr().err
