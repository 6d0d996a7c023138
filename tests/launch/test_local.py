"""`launch/local.sh`: several processes of one run on one machine."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
from runs import LAUNCH, environment, losses, metrics, quickstart

LOCAL = str(LAUNCH / 'local.sh')


def _local(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [LOCAL, *arguments],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **variables},
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_help_and_mistakes_are_answered_at_once():
  assert 'Usage: launch/local.sh' in _local('--help').stdout
  for arguments, words in [
    ((), 'expected N and a command'),
    (('two', 'txl'), "N must be a whole number of at least 1, found 'two'"),
    (('2', 'no_such_command'), "there is no command 'no_such_command'"),
  ]:
    done = _local(*arguments)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count('\n') == 1


def test_a_dry_run_prints_what_a_run_executes():
  program = 'echo "$JAX_NUM_PROCESSES $JAX_PROCESS_ID  $0"'
  printed = _local('--dry-run', '2', 'bash', '-c', program, 'a b').stdout
  lines = printed.splitlines()
  said = [
    subprocess.run(shlex.split(line), capture_output=True, text=True).stdout
    for line in lines
  ]
  assert said == ['2 0  a b\n', '2 1  a b\n']
  addresses = {shlex.split(line)[1] for line in lines}
  (address,) = addresses
  assert address.startswith('JAX_COORDINATOR_ADDRESS=localhost:')
  really = _local('2', 'bash', '-c', program, 'a b').stdout
  assert sorted(really.splitlines()) == ['2 0  a b', '[1] 2 1  a b']


def test_gpus_are_divided_among_the_processes():
  gpus = dict(JAX_PLATFORMS='', CUDA_VISIBLE_DEVICES='4,5,6,7')
  lines = _local('--dry-run', '2', 'txl', **gpus).stdout.splitlines()
  found = [shlex.split(line)[-2] for line in lines]
  assert found == [f'CUDA_VISIBLE_DEVICES={ids}' for ids in ('4,5', '6,7')]
  done = _local('--dry-run', '3', 'txl', **gpus)
  assert '4 GPUs cannot be divided among 3' in done.stderr
  assert done.returncode == 2


@pytest.mark.parametrize(
  'end, code, words',
  [
    ('exit 3', 3, 'process 1 ended with code 3, so all are ended; the'),
    ('kill -KILL $$', 137, 'process 1 ended by signal KILL, so all'),
    ('exit 2', 2, 'process 1 ended with code 2, so all are ended\n'),
    ('exit 77', 77, 'stopped and saved; the same command goes on'),
    ('exit 0', 0, ''),
  ],
)
def test_all_end_with_the_first_that_fails(end, code, words):
  others = 'sleep 0.5' if code in (0, 77) else 'exec sleep 60'
  begun = time.monotonic()
  done = _local('2', 'bash', '-c', f'((JAX_PROCESS_ID)) || {others}; {end}')
  assert done.returncode == code
  assert words in done.stderr and done.stderr.count('\n') == bool(words)
  assert time.monotonic() - begun < 10


def test_sigterm_reaches_all():
  program = 'trap "exit 77" TERM; echo up; while :; do sleep 0.1; done'
  running = subprocess.Popen(
    [LOCAL, '2', 'bash', '-c', program],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
  )
  for _ in range(2):
    assert running.stdout.readline().endswith(b'up\n')
  running.terminate()
  running.communicate(timeout=30)
  assert running.returncode == 77


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('local')


def _train(folder: pathlib.Path, count: int, work: str) -> subprocess.Popen:
  command = [LOCAL, str(count), 'txl', 'train', *quickstart(folder)]
  command += [f'--workdir={folder / work}']
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return subprocess.Popen(command, env=environment(folder), **pipes)


def _finish(running: subprocess.Popen) -> None:
  said, _ = running.communicate(timeout=200)
  assert running.returncode == 0, said[-3000:]


@pytest.fixture(scope='module')
def alone(folder) -> dict[tuple[int, str], float]:
  """The losses of one process."""
  _finish(_train(folder, 1, 'alone'))
  return losses(folder / 'alone')


def _child(running: subprocess.Popen, process: int) -> int:
  """The pid of a process of the run."""
  mark = f'JAX_PROCESS_ID={process}\0'.encode()
  children = f'/proc/{running.pid}/task/{running.pid}/children'
  for pid in map(int, pathlib.Path(children).read_text().split()):
    if mark in pathlib.Path(f'/proc/{pid}/environ').read_bytes():
      return pid
  raise LookupError(process)


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_even_if_one_is_killed(folder, alone):
  running = _train(folder, 2, 'two')
  while not any(line['step'] >= 15 for line in metrics(folder / 'two')):
    assert running.poll() is None, running.communicate()[0][-3000:]
    time.sleep(0.01)
  os.kill(_child(running, 1), signal.SIGKILL)
  killed = time.monotonic()
  said, _ = running.communicate(timeout=60)
  assert time.monotonic() - killed < 60
  assert running.returncode == 137
  assert 'local.sh: process 1 ended by signal KILL' in said
  _finish(_train(folder, 2, 'two'))
  assert losses(folder / 'two') == pytest.approx(alone, rel=1e-4)


@pytest.mark.full
def test_four_processes_make_the_run_of_one(folder, alone):
  _finish(_train(folder, 4, 'four'))
  assert losses(folder / 'four') == pytest.approx(alone, rel=1e-4)
