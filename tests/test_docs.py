"""The commands of the documentation are ones that the program understands."""

import pathlib
import re
import shlex

import pytest

from txl_jax.cli import _parser
from txl_jax.conversion import from_config_dict, to_config_dict
from txl_jax.overrides import apply_overrides, load_experiment

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r'```bash\n(.*?)```', re.DOTALL)


def _commands() -> list[str]:
  """Every `txl` command of the pages, on one line each."""
  found = []
  for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))):
    for block in BLOCK.findall(page.read_text()):
      lines = block.replace('\\\n', ' ').splitlines()
      lines = (line.strip().replace('$row', 'xl') for line in lines)
      texts = (line.removeprefix('.venv/bin/') for line in lines)
      found += [text for text in texts if text.startswith('txl ')]
  return found


@pytest.mark.parametrize('command', _commands())
def test_a_command_is_understood(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  words = shlex.split(command, comments=True)[1:]
  arguments, rest = _parser().parse_known_args(words)
  overrides = [word for word in rest if word.startswith('--config.')]
  if words[0] != 'bench':
    assert rest == overrides
  if experiment := getattr(arguments, 'config', None):
    values = load_experiment(experiment)
  else:
    values = to_config_dict(from_config_dict({'model': {'vocab_size': 9}}))
  assert from_config_dict(apply_overrides(values, overrides))
