"""`txl bench train`: one small model measured, and mistakes."""

import dataclasses
import json
import math
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from txl_jax.benchmark import inference, measure, scaling
from txl_jax.benchmark.ceiling import matrix_product_flops
from txl_jax.benchmark.synthetic import random_batch
from txl_jax.benchmark.training import memory_errors
from txl_jax.cli import main
from txl_jax.config import Config, ModelConfig, TrainConfig
from txl_jax.errors import InputError
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel.chips import published

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(vocab_size=300, n_layers=2, n_heads=2)
  config.model.update(d_model=16, d_head=8, d_ff=32, memory_length=20)
  config.model.dropout = 0.0  # compiles sooner
  config.train.update(batch_size=8, segment_length=4, segments_per_step=1)
  return config
"""
ROOT = pathlib.Path(__file__).parents[2]
CHOICE = 'attention_implementation' in {
  field.name for field in dataclasses.fields(ModelConfig)
}


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  path = tmp_path_factory.mktemp('bench') / 'experiment.py'
  path.write_text(EXPERIMENT)
  return f'--config={path}'


def _bench(capsys, *arguments: str) -> tuple[list[dict], str]:
  assert main(['bench', 'train', *arguments]) == 0
  printed = capsys.readouterr()
  lines = [json.loads(line) for line in printed.out.splitlines()]
  return lines, printed.err


def _mistake(capsys, *arguments: str) -> str:
  assert main(['bench', 'train', *arguments]) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  return printed.err


def test_a_measurement(experiment, capsys):
  (line,), said = _bench(
    capsys, experiment, '--batch=16', '--steps=2', '--breakdown'
  )
  assert (line['batch'], line['segment'], line['memory']) == (16, 4, 20)
  assert 'memory filled in 5 steps' in said
  milliseconds = line['milliseconds']
  assert line['milliseconds_fastest'] <= milliseconds
  assert milliseconds <= line['milliseconds_slowest']
  speed, queued = line['tokens_per_second'], line['milliseconds_queued']
  assert speed == pytest.approx(16 * 4 / queued * 1e3, rel=1e-3)
  model = ModelConfig(
    vocab_size=300,
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_head=8,
    d_ff=32,
    memory_length=20,
  )
  count = training_operations_per_token(model, batch_size=16, segment_length=4)
  assert line['model_tflops'] == pytest.approx(speed * count / 1e12, rel=1e-3)
  reachable = line['matrix_product_tflops'] * line['devices']
  assert line['utilisation'] == pytest.approx(
    line['model_tflops'] / reachable, rel=1e-3
  )
  assert (line['ratio'], line['devices']) == (1, jax.device_count())
  assert line['mesh'] == {'data': jax.device_count(), 'fsdp': 1, 'tensor': 1}
  assert not {'scaling', 'efficiency'} & line.keys()
  assert line['step_memory_bytes'] > 4 * line['parameters']
  shares = line['breakdown']
  idle, exchange = shares.pop('idle'), shares.pop('exchange')
  assert 0 < shares.pop('exposed') <= exchange < 1
  assert 0 <= idle < 1 - exchange
  assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
  assert min(shares['attention'], shares['softmax']) > 0
  assert shares['feed_forward'] > 0


def test_several_updates_in_a_call(experiment, capsys):
  (line,), said = _bench(
    capsys, experiment, '--steps=1', '--config.train.steps_per_call=2'
  )
  assert 'memory filled in 6 steps' in said
  # A call of two updates has read twice as many tokens.
  reading = 8 * 4 / line['milliseconds_queued'] * 1e3
  assert line['tokens_per_second'] == pytest.approx(reading, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not CHOICE, reason='there is one implementation')
def test_a_comparison(experiment, capsys):
  lines, _ = _bench(capsys, experiment, '--compare=reference,xla', '--steps=1')
  assert [line['implementation'] for line in lines] == ['reference', 'xla']
  first, second = (line['milliseconds_queued'] for line in lines)
  assert lines[1]['ratio'] == pytest.approx(first / second, rel=1e-3)


@pytest.mark.parametrize(
  'argument, words',
  [
    ('--steps=0', '--steps must be at least 1, found 0'),
    ('--batch=0', 'config.train.batch_size must be at least 1, found 0'),
    ('--batch=9', 'config.train.batch_size is 9, expected a multiple of the 8'),
    ('--config.model.n_layer=2', 'did you mean config.model.n_layers?'),
    ('--compare=xla,fast', 'attention_implementation'),
  ],
)
def test_mistakes_are_one_sentence(experiment, capsys, argument, words):
  said = _mistake(capsys, experiment, argument)
  assert words in said
  assert said.count('\n') == 1


def _commands_of_the_page() -> list[str]:
  page = (ROOT / 'docs' / 'performance.md').read_text()
  blocks = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
  lines = [block.replace('\\\n', ' ').splitlines() for block in blocks]
  return [line for line in sum(lines, []) if CHOICE or '--compare' not in line]


@pytest.mark.parametrize('command', _commands_of_the_page())
def test_commands_of_the_page_are_understood(command, monkeypatch, capsys):
  """They are parsed in full; what they measure is too large for here."""
  seen = []

  def note(configs: list[Config], steps: int, **_: object) -> list[dict]:
    seen.extend(configs)
    return [{'steps': steps} for _ in configs]

  def note_scaled(
    config: Config, counts: list[int], steps: int, **_: object
  ) -> list[dict]:
    return note([config] * len(counts), steps)

  def note_one(config: Config, *sizes: int, **_: object) -> dict:
    seen.append(config)
    return {'steps': sizes[-1]}

  monkeypatch.setattr(measure, 'measure_training', note)
  monkeypatch.setattr(scaling, 'measure_scaling', note_scaled)
  for name in ('measure_evaluation', 'measure_generation'):
    monkeypatch.setattr(inference, name, note_one)
  monkeypatch.chdir(ROOT)
  program, *arguments = shlex.split(command)
  assert (program, main(arguments)) == ('txl', 0)
  lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
  assert lines[0]['steps'] == 20 and len(lines) == len(seen)
  for config in seen:
    assert config.model.dtype == 'bfloat16'
    # What the other implementations were measured with.
    assert (config.optimizer.name, config.optimizer.clip_norm) == ('adam', 0.25)
    if arguments[1] == 'train':
      assert config.model.memory_length == config.train.segment_length


def test_too_little_memory_is_one_sentence():
  config = Config(ModelConfig(vocab_size=10), train=TrainConfig(batch_size=7))
  with pytest.raises(InputError, match='7 rows .* lower --batch'):
    with memory_errors(config):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    with memory_errors(config):
      raise jax.errors.JaxRuntimeError('INTERNAL: a bug')


def test_random_text_is_as_frequent_as_words_are():
  train = TrainConfig(batch_size=8, segment_length=500, segments_per_step=2)
  batch = random_batch(1000, train, seed=1)
  again = random_batch(1000, train, seed=1)
  other = random_batch(1000, train, seed=2)
  assert batch.tokens_SBT.shape == batch.starts_SBT.shape == (2, 8, 500)
  follows = batch.targets_SBT[..., :-1]
  assert np.array_equal(follows, batch.tokens_SBT[..., 1:])
  assert np.array_equal(batch.tokens_SBT, again.tokens_SBT)
  assert not np.array_equal(batch.tokens_SBT, other.tokens_SBT)
  counts = np.bincount(batch.tokens_SBT.ravel(), minlength=1000)
  # Twice as frequent at half the rank, nearly.
  assert counts[1] / counts[3] == pytest.approx(2, rel=0.3)


def test_the_ceiling_is_one_of_this_machine():
  found = matrix_product_flops(jax.devices()[0])
  assert 1e8 < found < 1e16


def test_published_chips():
  h200, v5e = published('NVIDIA H200'), published('TPU v5 lite')
  assert published('TPU v5e') is v5e
  assert published('cpu') is None
  # Operations a byte: the H200 has 206, the v5e 241.
  assert math.isclose(h200.flops / h200.bandwidth, 206, rel_tol=0.01)
  assert math.isclose(v5e.flops / v5e.bandwidth, 241, rel_tol=0.01)
  assert h200.source.startswith('https://')
