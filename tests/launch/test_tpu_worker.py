"""`launch/tpu_worker.sh`, in the home of a worker that is none."""

import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest
from runs import LAUNCH, write_script

TPU = str(LAUNCH / 'tpu.sh')


@pytest.fixture
def home(tmp_path) -> pathlib.Path:
  """With the scripts of the checkout, and commands that do nothing."""
  scripts = tmp_path / 'txl_jax' / 'launch'
  scripts.mkdir(parents=True)
  shutil.copy(LAUNCH / 'tpu_worker.sh', scripts)
  for name in ('gcsfuse', 'mountpoint'):
    write_script(tmp_path / 'bin' / name, 'exit 0')
  (tmp_path / '.local').mkdir()
  write_script(tmp_path / '.local' / 'bin' / 'uv', 'echo "$@" >>$HOME/said')
  return tmp_path


def _remote(home: pathlib.Path, action: str, *command: str) -> list[str]:
  """What `tpu.sh` asks of the worker for an action, done here."""
  arguments = ['--dry-run', action, 'ab', '--zone=z', *command]
  printed = subprocess.run(
    [TPU, *arguments], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  words = [word for line in printed for word in shlex.split(line)]
  (remote,) = [w for w in words if w.startswith('--command=') and 'wo' in w]
  remote = remote.removeprefix('--command=').rpartition('gz -C txl_jax && ')[2]
  done = subprocess.run(
    ['bash', '-c', remote],
    cwd=home,
    env={'HOME': str(home), 'PATH': f'{home / "bin"}:{os.environ["PATH"]}'},
    capture_output=True,
    text=True,
    timeout=30,
  )
  return [str(done.returncode), *done.stdout.splitlines()]


def test_a_command_is_started_watched_and_its_end_told(home):
  program = 'echo "$0" in ${PWD##*/}; sleep 0.5; echo last; exit 77'
  assert _remote(home, 'watch') == ['0', 'state: lost']
  command = ('--', 'bash', '-c', program, "it's $HOME")
  assert _remote(home, 'start', *command) == ['0']
  assert _remote(home, 'start', *command) == ['0']  # not a second one
  assert _remote(home, 'watch') == ['0', 'state: running']
  end = time.monotonic() + 20
  while (said := _remote(home, 'watch')) == ['0', 'state: running']:
    assert time.monotonic() < end
  assert said == ['0', 'state: 77 last']
  assert (home / 'txl.log').read_text() == "it's $HOME in txl_jax\nlast\n"
  assert _remote(home, 'start', '--', 'true') == ['0']
  while (said := _remote(home, 'watch')) == ['0', 'state: running']:
    assert time.monotonic() < end
  assert said == ['0', 'state: 0 last']


def test_setting_up_installs_and_mounts(home):
  assert _remote(home, 'setup', '--bucket=gs://b') == ['0']
  venv, install = (home / 'said').read_text().splitlines()
  assert venv == f'venv --python=3.12 {home}/venv'
  assert install.endswith(
    f'--python={home}/venv/bin/python {home}/txl_jax[tpu]'
  )
  assert list((home / 'txl_jax' / 'bucket').glob('.writable-*'))


@pytest.mark.parametrize(
  'broken, words',
  [
    ('gcsfuse', 'FAULT: cannot mount gs://b: does it exist, and may this TPU'),
    ('touch', 'FAULT: cannot write to gs://b: give the TPU'),
  ],
)
def test_a_bucket_without_permission_is_told(home, broken, words):
  for name in {'mountpoint', broken}:
    write_script(home / 'bin' / name, 'exit 1')
  code, *said = _remote(home, 'setup', '--bucket=gs://b')
  assert code == '3'
  assert said[-1].startswith(words)
