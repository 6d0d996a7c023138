"""`--config.SECTION.FIELD=VALUE` and experiment files."""

import pathlib
import sys
import textwrap

import pytest

from txl_jax.config import Config
from txl_jax.conversion import default_config, from_config_dict
from txl_jax.errors import InputError
from txl_jax.overrides import apply_overrides, field_names, load_experiment


def _with(*arguments: str) -> Config:
  return from_config_dict(apply_overrides(default_config(), list(arguments)))


@pytest.mark.parametrize(
  ('arguments', 'section', 'name', 'expected'),
  [
    (['--config.train.steps=7'], 'train', 'steps', 7),
    (['--config.train.steps', '7'], 'train', 'steps', 7),
    (['--config.data.path=a=b c'], 'data', 'path', 'a=b c'),
    (['--config.data.path', 'a b'], 'data', 'path', 'a b'),
    (['--config.data.path='], 'data', 'path', ''),
    (['--config.model.dropout=0.5'], 'model', 'dropout', 0.5),
    (['--config.model.dropout=0'], 'model', 'dropout', 0.0),
    (['--config.optimizer.clip_norm', '3'], 'optimizer', 'clip_norm', 3.0),
    (
      ['--config.optimizer.learning_rate=1e-3'],
      'optimizer',
      'learning_rate',
      1e-3,
    ),
    (['--config.model.remat=true'], 'model', 'remat', True),
    (['--config.model.remat=True'], 'model', 'remat', True),
    (['--config.model.remat', 'true'], 'model', 'remat', True),
    (['--config.model.tie_weights=false'], 'model', 'tie_weights', False),
    (['--config.model.cutoffs=(20, 30)'], 'model', 'cutoffs', (20, 30)),
    (['--config.model.cutoffs=(20,)'], 'model', 'cutoffs', (20,)),
    (['--config.model.cutoffs=20,30'], 'model', 'cutoffs', (20, 30)),
    (['--config.model.cutoffs=()'], 'model', 'cutoffs', ()),
    (
      ['--config.model.tie_projections=(True,)'],
      'model',
      'tie_projections',
      (True,),
    ),
    (["--config.sample.prompts=('a', 'b')"], 'sample', 'prompts', ('a', 'b')),
    (
      ["--config.optimizer.rate_factors=(('embedding/.*',0.1),)"],
      'optimizer',
      'rate_factors',
      (('embedding/.*', 0.1),),
    ),
    (
      ["--config.optimizer.rate_factors=('a', 2), ('b', 1e-3)"],
      'optimizer',
      'rate_factors',
      (('a', 2.0), ('b', 1e-3)),
    ),
    (
      ['--config.optimizer.frozen=layers/.*'],
      'optimizer',
      'frozen',
      ('layers/.*',),
    ),
    (['--config.optimizer.clip_norm=none'], 'optimizer', 'clip_norm', None),
    (['--config.model.dtype=bfloat16'], 'model', 'dtype', 'bfloat16'),
    (['--config.model.d_embed=64'], 'model', 'd_embed', 64),
    (['--config.sample.top_p=1'], 'sample', 'top_p', 1.0),
  ],
)
def test_values(arguments, section, name, expected):
  found = getattr(getattr(_with(*arguments), section), name)
  assert found == expected
  assert type(found) is type(expected)


@pytest.mark.parametrize('none', ['none', 'None', 'NONE'])
def test_none_for_optional_fields(none):
  assert default_config().sample.top_p is not None
  assert _with(f'--config.sample.top_p={none}').sample.top_p is None
  assert _with('--config.sample.top_p', none).sample.top_p is None
  assert _with(f'--config.model.d_embed={none}').model.d_embed is None


def test_the_other_fields_stay():
  changed = _with('--config.train.steps=7', '--config.model.d_embed=64')
  default = from_config_dict(default_config())
  assert changed.optimizer == default.optimizer
  assert changed.eval == default.eval
  assert changed.train.batch_size == default.train.batch_size
  assert _with() == default


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    (('0.5', '0.25'), 0.25),
    (('0.5', 'none'), None),
    (('none', '0.5'), 0.5),
  ],
)
def test_the_last_of_two_settings_counts(values, expected):
  found = _with(*(f'--config.sample.top_p={value}' for value in values))
  assert found.sample.top_p == expected


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.model.d_modle=3', 'did you mean config.model.d_model?'),
    ('--config.modle.d_model=3', 'did you mean config.model?'),
    ('--config.model.d_model.x=3', 'did you mean config.model.d_model?'),
    ('--config.model=3', 'config.model is a section, name a field of it'),
    ('--config.model.=3', 'config.model is a section, name a field of it'),
    ('--model.d_model=3', "'--model.d_model=3' is no argument"),
    ('--steps=3', "'--steps=3' is no argument"),
    ('--config.train.steps', "'--config.train.steps' is no argument"),
    ('word', "'word' is no argument"),
  ],
)
def test_an_unknown_name_is_refused(argument, message):
  with pytest.raises(InputError) as caught:
    _with(argument)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('train.steps', '1.5'),
    ('train.steps', '1e3'),
    ('train.steps', 'many'),
    ('train.steps', ''),
    ('train.steps', 'none'),
    ('train.steps', '-1'),
    ('model.dropout', 'half'),
    ('model.dropout', 'nan'),
    ('model.dropout', '2'),
    ('model.remat', 'perhaps'),
    ('model.remat', '2'),
    ('model.cutoffs', 'x'),
    ('model.cutoffs', '(1.5,)'),
    ('model.cutoffs', '(1'),
    ('model.d_embed', 'wide'),
    ('model.d_embed', '1.5'),
    ('model.dtype', 'int8'),
    ('sample.top_p', 'all'),
    ('optimizer.rate_factors', "('a', 2)"),
    ('optimizer.rate_factors', "(('a', 'b'),)"),
    ('optimizer.rate_factors', "(('a', 2),"),
    ('optimizer.frozen', "('(',)"),
    ('optimizer.frozen', '(1,)'),
  ],
)
def test_a_bad_value_is_refused_in_one_line_with_its_field(name, value):
  with pytest.raises(InputError) as caught:
    _with(f'--config.{name}={value}')
  assert f'config.{name}' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_every_field_is_listed_for_the_help():
  text = field_names()
  for section, values in default_config().items():
    line = next(x for x in text.split('\n') if f'config.{section}:' in x)
    listed = line.split(': ')[1].split(', ')
    assert set(listed) == set(values)


def _write(folder: pathlib.Path, text: str) -> pathlib.Path:
  path = folder / 'experiment.py'
  path.write_text(textwrap.dedent(text))
  return path


WITH_VARIANT = """
  from txl_jax.conversion import default_config

  def get_config(variant='small'):
    config = default_config()
    config.model.d_model = {'small': 16, 'large': 32}[variant]
    return config
"""


def test_an_experiment_file_and_its_variants(tmp_path):
  path = _write(tmp_path, WITH_VARIANT)
  assert load_experiment(str(path)).model.d_model == 16
  assert load_experiment(f'{path}:small').model.d_model == 16
  large = load_experiment(f'{path}:large')
  assert large.model.d_model == 32
  large = apply_overrides(large, ['--config.model.d_ff=8'])
  assert from_config_dict(large).model.d_ff == 8
  assert from_config_dict(large).model.d_model == 32


def test_an_unknown_variant_is_named(tmp_path):
  path = _write(tmp_path, WITH_VARIANT)
  with pytest.raises(InputError, match='huge'):
    load_experiment(f'{path}:huge')


def test_an_experiment_may_import_one_beside_it(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  before = [*sys.path]
  path = _write(tmp_path, WITH_VARIANT)
  beside = tmp_path / 'beside.py'
  beside.write_text(f'from {path.stem} import get_config\n')
  assert load_experiment(str(beside)) == load_experiment(str(path))
  assert sys.path == before


def test_a_missing_file_is_named(tmp_path):
  path = tmp_path / 'nowhere.py'
  with pytest.raises(InputError, match='--config: there is no file .*nowhere'):
    load_experiment(str(path))
  with pytest.raises(InputError, match='--config: there is no file .*nowhere'):
    load_experiment(f'{path}:small')
  with pytest.raises(InputError, match='--config: there is no file'):
    load_experiment(str(tmp_path))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:', 'SyntaxError'),
    ('import no_such_module_at_all', 'no_such_module_at_all'),
    ('def get_config():\n  return 1 / 0', 'division by zero'),
    ('def get_config():\n  return None', 'experiment.py'),
    ('def get_config():\n  return 3', 'experiment.py'),
    (
      """
      from txl_jax.conversion import default_config
      def get_config():
        config = default_config()
        config.model.d_modle = 3
        return config
      """,
      'd_modle',
    ),
    (
      """
      from txl_jax.conversion import default_config
      def get_config():
        config = default_config()
        config.model.d_model = 'wide'
        return config
      """,
      'd_model',
    ),
  ],
)
def test_a_broken_file_is_named_with_its_problem(tmp_path, text, message):
  path = _write(tmp_path, text)
  with pytest.raises(InputError) as caught:
    load_experiment(str(path))
  assert str(path) in str(caught.value)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_an_empty_configuration_lacks_the_model(tmp_path):
  path = _write(
    tmp_path,
    """
    from ml_collections import ConfigDict
    def get_config():
      return ConfigDict()
    """,
  )
  with pytest.raises(InputError, match='config.model'):
    from_config_dict(apply_overrides(load_experiment(str(path)), []))


def test_one_experiment_leaves_nothing_behind_for_the_next(tmp_path):
  first = _write(tmp_path, WITH_VARIANT)
  load_experiment(str(first))
  second = tmp_path / 'second.py'
  second.write_text('x = 3\n')
  with pytest.raises(InputError, match='get_config'):
    load_experiment(str(second))
