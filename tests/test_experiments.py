"""The published experiments: their sizes, their words, and that they run."""

import importlib.util
import pathlib
import re

import pytest

from txl_jax.cli import main
from txl_jax.training.metrics import MetricsFile

ROOT = pathlib.Path(__file__).parents[1]


def _maker():
  path = ROOT / 'docs' / 'make_experiments.py'
  spec = importlib.util.spec_from_file_location('make_experiments', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


MAKER = _maker()
EXPERIMENTS = {found.name: found for found in MAKER.read_experiments()}
# Parameters of the official PyTorch code, counted by building its models.
COUNTED = {
  'enwik8_base': 41_055_436,
  'text8_base': 40_964_635,
  'enwik8_large': 277_231_820,
  'enwik8_large:784': 277_231_820,
  'enwik8_large:680': 277_231_820,
  'text8_large': 277_050_395,
  'wt103_base': 151_107_538,
  'wt103_large': 285_170_506,
  'lm1b_base:script': 357_812_099,
  'lm1b_base': 469_020_547,
  'lm1b_large': 841_296_003,
  'wt103_base_nvidia': 191_950_298,
}
# What the paper says of models whose sizes it does not give, and how near the
# derived ones must come.
PUBLISHED = {
  'enwik8_18_layers': (88e6, 0.001),
  'ptb': (24e6, 0.005),
  'wt103_ablations:xl': (128e6, 0.001),
  'lm1b_ablations:xl': (0.3e9, 0.005),
}


@pytest.mark.parametrize('name', COUNTED)
def test_counts_of_the_official_code(name):
  assert EXPERIMENTS[name].count_parameters() == COUNTED[name]


@pytest.mark.parametrize('name', PUBLISHED)
def test_derived_sizes_have_the_published_count(name):
  count, tolerance = PUBLISHED[name]
  found = EXPERIMENTS[name].count_parameters()
  assert found == pytest.approx(count, rel=tolerance)


def test_the_vanilla_counts_lack_the_auxiliary_softmaxes():
  for name, layers, published in (
    ('vanilla', 12, 44e6),
    ('vanilla:enwik8_64', 64, 235e6),
  ):
    auxiliary = layers * 2 * 512 * 256
    total = EXPERIMENTS[name].count_parameters() + auxiliary
    assert round(total / 1e6) == published / 1e6


def test_the_small_ablation_rows_have_equal_counts():
  counts = [
    found.count_parameters()
    for name, found in EXPERIMENTS.items()
    if name.startswith('embedded_ablations')
  ]
  assert len(counts) == 9
  assert max(counts) < 1.001 * min(counts)


def test_docstrings_state_count_command_and_source():
  for name, found in EXPERIMENTS.items():
    facts, (file, _, variant) = found.facts, name.partition(':')
    assert facts.keys() >= {'Command', 'Hardware', 'Parameters', 'Published'}
    if file != 'quickstart':
      assert f'--config=experiments/{file}.py' in facts['Command']
    stated = facts['Parameters'].split()[0].replace(',', '')
    if stated.isdigit() and not variant:
      assert int(stated) == found.count_parameters(), name
    if variant:
      text = (ROOT / 'experiments' / f'{file}.py').read_text()
      assert (
        variant in text.split('"""')[1] or 'rows below' in facts['Variants']
      )


def test_the_lengths_that_differ_between_training_and_evaluation():
  base, large = EXPERIMENTS['wt103_base'].config, EXPERIMENTS['enwik8_large']
  assert base.train.segment_length == base.model.memory_length == 150
  assert base.eval.segment_length == 64
  assert base.eval.memory_length == base.eval.attention_span == 640
  assert base.eval.clamp_length == 400
  for variant, length in (('', 768), (':784', 784), (':680', 680)):
    config = EXPERIMENTS[f'enwik8_large{variant}'].config
    assert config.train.segment_length == config.model.memory_length == length
  settings = large.config.eval
  assert (settings.segment_length, settings.memory_length) == (128, 3800)
  assert settings.clamp_length == 1000


def test_the_table_in_the_docs_is_up_to_date():
  page = MAKER.PAGE.read_text()
  assert MAKER.render(page) == page


@pytest.fixture(scope='module')
def text(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  path.write_text(' '.join(f'{n} times {n} is {n * n}.' for n in range(400)))
  return path


def _reduced(found, text: pathlib.Path) -> list[str]:
  """Overrides that make any experiment small; they set no other field."""
  config = found.config
  fields = {
    'data.corpus': '',
    'data.path': text,
    'model.vocab_size': 257,
    'model.n_layers': 2,
    'model.n_heads': 2,
    'model.d_model': 16,
    'model.d_head': 8,
    'model.d_ff': 16,
    'model.memory_length': min(config.model.memory_length, 8),
    'train.steps': 2,
    'train.batch_size': 8,
    'train.segment_length': 8,
    'eval.batch_size': 8,
    'eval.segment_length': 8,
    'eval.memory_length': min(config.eval.memory_length, 16),
    'sample.prompts': '()',
  }
  if config.model.cutoffs:
    fields['model.cutoffs'] = '(60, 100, 120)'
    fields['model.d_embed'] = 64
  if config.model.n_positions:
    fields['model.n_positions'] = 8
  if config.eval.attention_span:
    fields['eval.attention_span'] = 16
  return [f'--config.{name}={value}' for name, value in fields.items()]


# One of each file, and one of each encoding and loss.
RUN = [name for name in EXPERIMENTS if ':' not in name] + [
  'wt103_ablations:xl_half',
  'wt103_ablations:vaswani_half',
  'lm1b_ablations:shaw',
  'embedded_ablations:alrfou_half',
]


@pytest.mark.slow
@pytest.mark.parametrize('name', RUN)
def test_two_steps_at_reduced_width(name, text, tmp_path, capsys):
  found = EXPERIMENTS[name]
  file, colon, variant = name.partition(':')
  path = ROOT / 'experiments' / f'{file}.py'
  command = ['train', f'--config={path}{colon}{variant}']
  command += [f'--workdir={tmp_path}', *_reduced(found, text)]
  assert main(command) == 0, capsys.readouterr().err
  lines = MetricsFile(tmp_path / 'metrics.jsonl').read()
  last = {line['split']: line for line in lines}
  assert last['train']['step'] == last['test']['step'] == 2
  tokens = len(text.read_bytes()) * 0.05
  assert last['test']['tokens'] == pytest.approx(tokens, abs=2)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('enwik8_large.py:99', r"no variant '99', it has 784, 680"),
    ('wt103_ablations.py:none', r"no variant 'none', it has xl, xl_shaw"),
  ],
)
def test_an_unknown_variant_is_named(argument, message, tmp_path, capsys):
  command = ['train', f'--config={ROOT}/experiments/{argument}']
  assert main([*command, f'--workdir={tmp_path}']) == 2
  assert re.search(message, capsys.readouterr().err)


def test_another_vocabulary_is_refused(text, tmp_path, capsys):
  command = ['train', f'--config={ROOT}/experiments/wt103_base.py']
  command += [f'--workdir={tmp_path}', '--config.data.corpus=']
  command += [f'--config.data.path={text}', '--config.train.batch_size=64']
  command += ['--config.eval.batch_size=8']
  assert main(command) == 2
  error = capsys.readouterr().err
  assert 'config.model.vocab_size is 267,735' in error
  assert 'text.txt has 257 tokens' in error
