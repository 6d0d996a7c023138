"""The optimizer's section: ranges, patterns, and its nested tuples."""

import pytest

from txl_jax.conversion import default_config, from_config_dict
from txl_jax.errors import InputError
from txl_jax.optimizer_config import OptimizerConfig


@pytest.mark.parametrize(
  ('names', 'bad', 'good'),
  [
    ('learning_rate epsilon clip_norm', 0.0, 1e-12),
    ('learning_rate', float('nan'), 1.0),
    ('clip_norm', -1.0, None),
    ('final_learning_rate warmup_steps', -1, 0),
    ('b1 b2', 1.0, 0.0),
    ('warmup_tokens weight_decay', -1, 0),
    ('plateau_patience', 0, 1),
    ('plateau_factor average_decay', 0.0, 0.001),
    ('plateau_factor average_decay', 1.0, 0.999),
    ('average_last_fraction', 0.0, 0.001),
    ('average_last_fraction', 1.1, 1.0),
    ('undecayed frozen', ('(',), ('()',)),
    ('rate_factors', (('*', 1.0),), (('.*', 1.0),)),
    ('rate_factors', (('.*', 0.0),), (('.*', 0.1),)),
  ],
)
def test_ranges(names, bad, good):
  for name in names.split():
    assert getattr(OptimizerConfig(**{name: good}), name) == good
    with pytest.raises(InputError) as caught:
      OptimizerConfig(**{name: bad})
    assert str(caught.value).startswith(f'config.optimizer.{name} must be ')
    assert str(caught.value).endswith(f'found {bad!r}')


def test_a_broken_pattern_is_named():
  with pytest.raises(InputError, match=r"'\*b': nothing to repeat"):
    OptimizerConfig(frozen=('a', '*b'))


@pytest.mark.parametrize(
  ('name', 'value', 'expected'),
  [
    ('frozen', 'a', "tuple[str, ...], found 'a' of type str"),
    ('rate_factors', ['a', 2], "tuple[str, float], found 'a' of type str"),
    ('rate_factors', [['a']], "found ['a'], which has 1 items"),
    ('rate_factors', [['a', 'b']], "float, found 'b' of type str"),
    ('rate_factors', [[2, 2]], 'str, found 2 of type int'),
  ],
)
def test_a_wrong_type_names_field_and_value(name, value, expected):
  values = default_config().to_dict()
  values['optimizer'][name] = value
  with pytest.raises(InputError) as caught:
    from_config_dict(values)
  assert str(caught.value).startswith(f'config.optimizer.{name} must be of')
  assert expected in str(caught.value)


def test_an_int_passes_as_a_float():
  values = default_config().to_dict()
  values['optimizer']['clip_norm'] = 1
  clip_norm = from_config_dict(values).optimizer.clip_norm
  assert type(clip_norm) is float
  assert clip_norm == 1


def test_lists_become_tuples():
  """So that the configuration is hashable, also when it comes from JSON."""
  values = default_config().to_dict()
  values['optimizer'].update(rate_factors=[['a', 2]], frozen=['b'])
  config = from_config_dict(values).optimizer
  assert config.rate_factors == (('a', 2.0),)
  direct = OptimizerConfig(rate_factors=[['a', 2.0]], frozen=['b'])
  assert direct == config
  assert hash(direct) == hash(config)
