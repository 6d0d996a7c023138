"""What the README shows works as written."""

import contextlib
import pathlib
import re
import shlex

import pytest

from txl_jax.cli import main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def _blocks(language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def test_the_functional_api_in_twenty_lines():
  (code,) = _blocks('python')
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  assert names['new_BL'].shape == (4, 10)
  assert 5.0 < names['value'] < 6.0  # a fresh model: about log(257)


def _commands(text: str) -> list[list[str]]:
  lines = text.replace('\\\n', ' ').split('\n')
  return [shlex.split(line, comments=True) for line in lines if line]


def test_the_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  (first, _) = _blocks('bash')
  targets = [command[1] for command in _commands(first)]
  assert targets == ['quickstart', 'test']
  for target in targets:
    assert f'\n{target}: ' in makefile


@pytest.mark.slow
def test_the_commands_on_ones_own_text(tmp_path, monkeypatch, capsys):
  text = tmp_path / 'mine.txt'
  text.write_text('A line of text, again and again.\n' * 2000)
  monkeypatch.chdir(ROOT)
  (_, own) = _blocks('bash')
  for command in _commands(own):
    assert command[0] == '.venv/bin/txl'
    arguments = [
      {'--workdir=runs/mine': f'--workdir={tmp_path / "run"}'}.get(a, a)
      for a in (a.replace('=FILE', f'={text}') for a in command[1:])
    ]
    if arguments[0] == 'train':
      # The same command, shortened.
      arguments += ['--config.train.steps=20', '--config.sample.length=20']
    with contextlib.suppress(SystemExit):
      assert main(arguments) == 0
  output = capsys.readouterr().out
  assert '"split": "test"' in output
  assert 'Once upon' in output
  assert (tmp_path / 'run' / 'report.html').exists()
