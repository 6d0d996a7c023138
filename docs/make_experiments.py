"""Writes the table of experiments in docs/experiments.md from the configs.

Run `python docs/make_experiments.py` after a change in `experiments/`.
"""

import dataclasses
import inspect
import pathlib
import re
import runpy
import sys

import jax

import txl_jax
from txl_jax.config import Config
from txl_jax.conversion import from_config_dict
from txl_jax.overrides import load_experiment

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'experiments.md'
HEAD = (
  ('experiment', 'layers', 'width', 'parameters', 'training', 'evaluation'),
  ('published',),
)
BEGIN, END = '<!-- The table is generated. -->\n', '<!-- End of the table. -->'


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A configuration of a file in `experiments/`.

  Attributes:
    name: FILE or FILE:VARIANT, without folder and ending.
    config: what it returns.
    facts: the labelled lines of the file's docstring.
    published: the number it should reach.
  """

  name: str
  config: Config
  facts: dict[str, str]
  published: str

  def count_parameters(self) -> int:
    """How many the model has, softmax included."""
    model, key = self.config.model, jax.random.key(0)
    params = jax.eval_shape(lambda: txl_jax.init_params(model, key))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def read_experiments() -> list[Experiment]:
  """All of them, with their variants, in alphabetical order."""
  paths = sorted((ROOT / 'experiments').glob('*.py'))
  return [found for path in paths for found in _read(path)]


def _read(path: pathlib.Path) -> list[Experiment]:
  sys.path.insert(0, str(path.parent))
  module = runpy.run_path(str(path))
  sys.path.remove(str(path.parent))
  facts = _facts(module['__doc__'])
  published = dict(module.get('VARIANTS', {}))
  parameters = inspect.signature(module['get_config']).parameters.values()
  if all(p.default is not p.empty for p in parameters):
    default = re.split(r' \(|[;,] ', facts['Published'])[0]
    published = {'': default, **published}
  result = []
  for variant, number in published.items():
    colon = ':' if variant else ''
    values = load_experiment(f'{path}{colon}{variant}')
    name = f'{path.stem}{colon}{variant}'
    result.append(Experiment(name, from_config_dict(values), facts, number))
  return result


def _facts(docstring: str) -> dict[str, str]:
  """'Label: text' lines; a line that is indented goes on with the text."""
  lines = re.sub(r'\n  +', ' ', docstring).splitlines()
  pairs = [re.fullmatch(r'([A-Z][a-z]+):\s+(.*)', line) for line in lines]
  return {pair[1]: pair[2] for pair in pairs if pair}


def table(experiments: list[Experiment]) -> str:
  """The table in Markdown."""
  names = [name for part in HEAD for name in part]
  lines = [names, ['---'] * len(names), *map(_row, experiments)]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _row(experiment: Experiment) -> list[str]:
  model, train = experiment.config.model, experiment.config.train
  training = f'T {train.segment_length}, M {model.memory_length}'
  if model.position_encoding != 'relative':
    training += f', {model.position_encoding}'
  if train.loss != 'full':
    training += f', {train.loss} loss'
  return [
    f'`{experiment.name}`',
    str(model.n_layers),
    f'{model.d_model}, {model.n_heads} x {model.d_head}, {model.d_ff}',
    f'{experiment.count_parameters():,}',
    training,
    _evaluation(experiment.config),
    experiment.published,
  ]


def _evaluation(config: Config) -> str:
  settings = config.eval
  text = f'T {settings.segment_length}, M {settings.memory_length}'
  if settings.clamp_length:
    text += f', clamp {settings.clamp_length}'
  if settings.stride:
    text += f', sliding by {settings.stride}'
  return text


def render(page: str) -> str:
  """The page with its table anew."""
  before, rest = page.split(BEGIN)
  _, after = rest.split(END)
  return f'{before}{BEGIN}\n{table(read_experiments())}\n{END}{after}'


if __name__ == '__main__':
  PAGE.write_text(render(PAGE.read_text()))
