"""Configurations are converted strictly and checked at birth."""

import dataclasses
import json

import pytest

import txl_jax
from txl_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
  SampleConfig,
  TrainConfig,
)
from txl_jax.conversion import default_config, from_config_dict, to_config_dict
from txl_jax.errors import InputError

OPTIONAL = [
  ('model', 'd_embed', 8),
  ('model', 'attention_span', 3),
  ('model', 'clamp_length', 5),
  ('eval', 'attention_span', 3),
  ('optimizer', 'warmup_tokens', 6),
  ('sample', 'top_k', 7),
]


def _unusual() -> Config:
  """A configuration none of whose fields has its default."""
  return Config(
    ModelConfig(
      **dict(vocab_size=100, n_layers=3, n_heads=2, d_model=16, d_head=4),
      **dict(d_ff=24, d_embed=20, memory_length=7, attention_span=8),
      **dict(position_encoding='shaw', n_positions=9, clamp_length=5),
      **dict(cutoffs=(10, 50), div_val=2, tie_weights=False),
      **dict(tie_projections=(True, False, True), square_projections=False),
      **dict(untie_biases=True, pre_norm=True, layer_norm_epsilon=1e-6),
      **dict(dropout=0.25, attention_dropout=0.5, position_dropout='feature'),
      **dict(memory_start='zeros', init_std=0.5, projection_init_std=0.25),
      **dict(dtype='bfloat16', remat=True, unroll=3),
      attention_implementation='reference',
    ),
    DataConfig(
      *('', 0.2, 0.1, '', 'b', 'ptb', 'c', 'd', 'words', 'e', 9, 2, True, True)
    ),
    OptimizerConfig(
      *('lamb', 1, 0.5, 'cosine_official', 3, 0.5, 0.75, 0.1, 2, 99),
      *(0.25, 3, 0.5, ('a',), (('b', 2.0), ('c', 0.5)), ('d', 'e')),
      *('ema', 0.9, 0.5),
    ),
    TrainConfig(
      *(8, 6, 5, 4, 'half', 7, 3, 2, 3, 'a', 5, 4, 6, 7, 10, 4, 9, False, 'b'),
      *(3, True),
    ),
    EvalConfig(3, 4, 0, 1, 7, 2, 0),
    SampleConfig(('a', 'b'), 3, 0.5, 4, 0.25, 0.125),
    MeshConfig(2, 3, -1),
  )


def _defaults(config: Config) -> list[str]:
  """The fields that have their default value."""
  found = []
  for section in dataclasses.fields(config):
    values = getattr(config, section.name)
    for field in dataclasses.fields(values):
      if getattr(values, field.name) == field.default:
        found.append(f'{section.name}.{field.name}')
  return found


def test_every_field_survives_the_round_trip():
  config = _unusual()
  # A corpus instead, and a stride instead.
  expected = ['data.path', 'data.tfds_name', 'eval.warmup_tokens']
  assert _defaults(config) == expected
  assert from_config_dict(to_config_dict(config)) == config
  assert from_config_dict(to_config_dict(config).to_dict()) == config


def test_every_field_survives_json():
  for config in (_unusual(), from_config_dict(default_config())):
    text = to_config_dict(config).to_json()
    assert from_config_dict(json.loads(text)) == config


def test_the_default_is_what_the_dataclasses_say():
  expected = Config(ModelConfig(vocab_size=257))
  assert from_config_dict(default_config()) == expected


def test_an_experiment_cannot_set_an_unknown_field():
  config = default_config()
  with pytest.raises(KeyError, match='d_modle'):
    config.model.update(d_modle=4)
  with pytest.raises((KeyError, AttributeError), match='d_modle'):
    config.model.d_modle = 4


@pytest.mark.parametrize(
  ('section', 'name', 'suggestion'),
  [
    ('model', 'd_modle', 'config.model.d_model'),
    ('model', 'mem_length', 'config.model.memory_length'),
    ('optimizer', 'lerning_rate', 'config.optimizer.learning_rate'),
    ('train', 'batchsize', 'config.train.batch_size'),
    ('eval', 'memory_len', 'config.eval.memory_length'),
    ('sample', 'topk', 'config.sample.top_k'),
  ],
)
def test_an_unknown_field_is_answered_with_the_nearest(
  section, name, suggestion
):
  values = default_config().to_dict()
  values[section][name] = 4
  with pytest.raises(InputError) as caught:
    from_config_dict(values)
  assert f'config.{section}.{name} is no field' in str(caught.value)
  assert str(caught.value).endswith(f'did you mean {suggestion}?')


def test_an_unknown_section_is_answered_with_the_nearest():
  values = {**default_config().to_dict(), 'optimiser': {}}
  with pytest.raises(InputError) as caught:
    from_config_dict(values)
  assert 'config.optimiser is no field' in str(caught.value)
  assert str(caught.value).endswith('did you mean config.optimizer?')


def test_a_name_like_no_other_is_answered_with_all():
  values = {**default_config().to_dict(), 'qqqq': {}}
  with pytest.raises(InputError, match='known are model, data, optimizer'):
    from_config_dict(values)


def test_a_missing_field_is_named():
  values = default_config().to_dict()
  del values['model']['vocab_size']
  with pytest.raises(InputError, match='config.model.vocab_size is missing'):
    from_config_dict(values)


@pytest.mark.parametrize('values', [{}, {'train': {'steps': 3}}])
def test_a_missing_section_is_named(values):
  with pytest.raises(InputError, match='config.model'):
    from_config_dict(values)


@pytest.mark.parametrize('value', [3, 'large', None, [1, 2]])
def test_a_section_that_is_no_section_is_named(value):
  values = {**default_config().to_dict(), 'model': value}
  with pytest.raises(InputError, match='config.model'):
    from_config_dict(values)


@pytest.mark.parametrize(
  ('section', 'name', 'value', 'expected'),
  [
    ('model', 'd_model', 16.0, 'int, found 16.0 of type float'),
    ('model', 'd_model', '16', "int, found '16' of type str"),
    ('model', 'd_model', None, 'int, found None of type NoneType'),
    ('model', 'd_model', True, 'int, found True of type bool'),
    ('model', 'd_embed', 'wide', "int, found 'wide' of type str"),
    ('model', 'dropout', True, 'float, found True of type bool'),
    ('model', 'remat', 1, 'bool, found 1 of type int'),
    ('model', 'cutoffs', 20, 'found 20 of type int'),
    ('model', 'cutoffs', [20.5], 'int, found 20.5 of type float'),
    ('model', 'tie_projections', [0], 'bool, found 0 of type int'),
    ('data', 'path', 3, 'str, found 3 of type int'),
    ('sample', 'prompts', 'a', "found 'a' of type str"),
    ('sample', 'top_p', 'all', "float, found 'all' of type str"),
  ],
)
def test_a_wrong_type_names_field_and_value(section, name, value, expected):
  values = default_config().to_dict()
  values[section][name] = value
  with pytest.raises(InputError) as caught:
    from_config_dict(values)
  assert str(caught.value).startswith(f'config.{section}.{name} must be of')
  assert expected in str(caught.value)


def test_a_choice_names_the_choices():
  values = default_config().to_dict()
  values['model']['dtype'] = 'float16'
  with pytest.raises(InputError) as caught:
    from_config_dict(values)
  assert str(caught.value) == (
    "config.model.dtype must be one of 'float32', 'bfloat16', 'float64', "
    "found 'float16'"
  )


@pytest.mark.parametrize(('section', 'name', 'value'), OPTIONAL)
def test_optional_fields_can_be_set_and_keep_their_type(section, name, value):
  config = default_config()
  assert config[section][name] is None
  config[section][name] = value
  assert getattr(getattr(from_config_dict(config), section), name) == value
  with pytest.raises(TypeError):
    config[section][name] = 'wide'


def test_a_model_config_is_hashable_and_a_value():
  config = _unusual().model
  again = from_config_dict(to_config_dict(_unusual())).model
  assert hash(config) == hash(again)
  assert {config: 1}[again] == 1
  assert hash(config) != hash(dataclasses.replace(config, unroll=1))
  assert isinstance(hash(_unusual()), int)
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.d_model = 4


def test_lists_become_tuples():
  config = txl_jax.ModelConfig(
    vocab_size=100, cutoffs=[10, 20], tie_projections=[True, False, True]
  )
  assert config.cutoffs == (10, 20)
  assert config.tie_projections == (True, False, True)
  values = default_config().to_dict()
  values['sample']['prompts'] = ['a', 'b']
  assert from_config_dict(values).sample.prompts == ('a', 'b')
