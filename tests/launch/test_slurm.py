"""`launch/slurm.sbatch`, on a real Slurm on this machine."""

import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest
from launching import (
  LAUNCH,
  QUICKSTART,
  environment,
  losses,
  metrics,
  quickstart,
  write_script,
)
from loopback import Slurm, unpack, wait_until

SBATCH = str(LAUNCH / 'slurm.sbatch')
# So that the signal comes long before the end.
LONGER = [
  '--config.train.steps=400',
  '--config.train.log_every_steps=20',
  '--config.train.eval_every_steps=400',
  '--config.train.checkpoint_every_steps=200',
]


def _outside(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
  names = [name for name in os.environ if not name.startswith('SLURM_')]
  return subprocess.run(
    [SBATCH, *arguments],
    env={**{name: os.environ[name] for name in names}, **variables},
    capture_output=True,
    text=True,
  )


def test_help_and_mistakes_are_answered_at_once():
  assert 'Usage: sbatch OPTIONS' in _outside('--help').stdout
  job = dict(SLURM_JOB_ID='1', SLURM_TASKS_PER_NODE='1(x2)')
  for arguments, variables, words in [
    ((), {}, 'expected a command'),
    (('txl',), {}, 'this is no Slurm job; submit it: sbatch'),
    (('no_such_command',), job, "there is no command 'no_such_command'"),
    (('ls',), {**job, 'SLURM_GPUS_ON_NODE': '8'}, 'add --ntasks-per-node=8'),
  ]:
    done = _outside(*arguments, **variables)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count('\n') == 1


def test_a_dry_run_prints_the_step():
  printed = _outside(
    '--dry-run',
    'txl',
    'train',
    '--config=a b',
    JAX_COMPILATION_CACHE_DIR='/local',
    SLURM_CPUS_PER_TASK='4',
  ).stdout
  words = 'env JAX_COMPILATION_CACHE_DIR=/local srun --wait=30 --gpu-bind=none'
  expected = [*words.split(), '--cpus-per-task=4']
  assert shlex.split(printed) == [*expected, 'txl', 'train', '--config=a b']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('slurm')


@pytest.fixture(scope='module')
def slurm(folder) -> Iterator[Slurm]:
  unpack(folder)
  with Slurm(folder).running() as slurm:
    yield slurm


def _submit(slurm: Slurm, *command: str, **variables: str) -> str:
  options = ['--parsable', '--ntasks=2', '--time=10']
  return slurm.run('sbatch', *options, SBATCH, *command, **variables)


@pytest.mark.slow
def test_a_task_that_fails_ends_the_job(slurm, folder):
  job = _submit(
    slurm,
    'bash',
    '-c',
    '((SLURM_PROCID)) && exit 3; exec sleep 100',
    SLURM_WAIT='2',
  )
  assert slurm.end(job, 30) == 'FAILED'
  log = (folder / f'txl-{job}.log').read_text()
  assert 'task 1: Exited with exit code 3' in log
  assert 'slurm.sbatch: a task failed, so all are ended (code ' in log


def _variables(slurm: Slurm, folder: pathlib.Path) -> dict[str, str]:
  """Of a job that finds `txl` and Slurm."""
  variables = environment(folder)
  variables['PATH'] = f'{folder / "bin"}:{slurm.environment["PATH"]}'
  for name in ('SLURM_CONF', 'LD_LIBRARY_PATH'):
    variables[name] = slurm.environment[name]
  return variables


@pytest.mark.slow
def test_a_sweep_is_an_array_of_its_points(slurm, folder):
  variables = _variables(slurm, folder)
  txl = folder / 'bin' / 'txl'
  write_script(txl, 'echo "$@" >"$SLURM_JOB_NAME$SLURM_ARRAY_TASK_ID.said"')
  sweep = [str(LAUNCH / 'sweep.py'), 'slurm', 'swept', '--grid=train.seed=5,7']
  sweep += [f'--config={QUICKSTART}', '--', '--parsable', '--job-name=point']
  job = slurm.run('python3', *sweep, **variables)
  assert slurm.end(job, 60) == 'COMPLETED'
  wait_until(lambda: (folder / 'point1.said').exists(), 60)
  for i, seed in enumerate((5, 7)):
    assert (folder / f'point{i}.said').read_text() == (
      f'train --config={QUICKSTART} --workdir=swept/00{i} '
      f'--config.train.seed={seed}\n'
    )


@pytest.mark.slow
def test_a_run_goes_on_after_sigterm(slurm, folder):
  work = folder / 'work'
  variables = _variables(slurm, folder)
  options = (*quickstart(folder), f'--workdir={work}', *LONGER)
  job = _submit(slurm, 'txl', 'train', *options, **variables)
  wait_until(lambda: any(x['step'] >= 20 for x in metrics(work)), 120)
  slurm.run('scancel', '--signal=TERM', job)
  assert slurm.end(job, 200) == 'COMPLETED'
  log = (folder / f'txl-{job}.log').read_text()
  saved = re.findall('Stopped by a signal; step (.*) is saved', log)
  assert len(saved) == 2 and len(set(saved)) == 1
  assert f'Going on from step {saved[0]}.' in log
  assert 'stopped and saved; back into the queue' in log
  assert f'job {job}, start 1, 2 tasks' in log
  steps = [step for step, split in losses(work) if split == 'train']
  assert steps == list(range(20, 401, 20))
