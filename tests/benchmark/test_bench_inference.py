"""`txl bench eval` and `txl bench generate`: a small model, and mistakes."""

import json

import jax
import pytest

from txl_jax.benchmark import inference
from txl_jax.benchmark.evaluation import SEGMENTS_PER_CALL, Reader
from txl_jax.benchmark.generation import Generation
from txl_jax.cli import main
from txl_jax.config import Config, EvalConfig, ModelConfig, SampleConfig
from txl_jax.errors import InputError
from txl_jax.generation.decode import MOST_STEPS
from txl_jax.parallel.mesh import make_mesh

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(vocab_size=300, n_layers=2, n_heads=2)
  config.model.update(d_model=16, d_head=8, d_ff=32, memory_length=4)
  config.eval.update(batch_size=8, segment_length=4, memory_length=70)
  config.eval.update(attention_span=20)
  return config
"""
MODEL = ModelConfig(
  vocab_size=30,
  n_layers=1,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=16,
)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  path = tmp_path_factory.mktemp('bench') / 'experiment.py'
  path.write_text(EXPERIMENT)
  return f'--config={path}'


def _bench(capsys, *arguments: str) -> tuple[dict, str]:
  assert main(['bench', *arguments]) == 0
  printed = capsys.readouterr()
  (line,) = printed.out.splitlines()
  return json.loads(line), printed.err


def test_evaluation(experiment, capsys):
  line, said = _bench(
    capsys, 'eval', experiment, '--batch=16', '--memory=50', '--steps=3'
  )
  assert (line['batch'], line['segment'], line['memory']) == (16, 4, 50)
  assert 'memory filled in 16 segments; measuring 3 calls' in said
  assert line['milliseconds_fastest'] <= line['milliseconds']
  assert line['milliseconds'] <= line['milliseconds_slowest']
  speed = line['tokens_per_second']
  assert speed == pytest.approx(16 * 4 / line['milliseconds'] * 1e3, rel=1e-3)
  # For each token and layer: 4 projections of 16 x 16, the feed-forward, and
  # three products with the 20 keys of the span; then the softmax.
  layer = 4 * 16 * 16 + 2 * 16 * 32 + 3 * 16 * 20
  count = 2 * (2 * layer + 16 * 300)
  assert line['model_tflops'] == pytest.approx(speed * count / 1e12, rel=1e-3)
  assert (line['steps'], line['devices']) == (3, jax.device_count())


def test_generation(experiment, capsys):
  line, said = _bench(
    *(capsys, 'generate', experiment, '--batch=3', '--steps=2'),
    *('--breakdown', '--config.sample.top_k=9'),
  )
  assert (line['batch'], line['memory'], line['top_k']) == (3, 70, 9)
  assert f'measuring 2 blocks of {MOST_STEPS} tokens' in said
  speed = line['tokens_per_second_of_a_row']
  assert speed == pytest.approx(1e3 / line['milliseconds'], rel=1e-3)
  assert line['tokens_per_second'] == pytest.approx(3 * speed, rel=1e-3)
  assert (line['steps'], line['devices']) == (2, 1)
  shares = line['breakdown']
  del shares['idle']
  assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
  assert shares['softmax'] > 0


def test_the_memory_is_full_before_the_clock_starts():
  settings = EvalConfig(batch_size=2, segment_length=3, memory_length=60)
  mesh = make_mesh(devices=jax.devices()[:1])
  reader = Reader(MODEL, settings, mesh)
  assert reader.fill() * SEGMENTS_PER_CALL * 3 >= 60
  assert reader.cache.valid_B.tolist() == [60, 60]
  assert reader.tokens == 2 * 3 * SEGMENTS_PER_CALL
  sample = SampleConfig(temperature=1.0, top_p=None)
  config = Config(MODEL, eval=settings, sample=sample)
  generation = Generation(config, 2, mesh)
  for n_drawn in (1, 1 + MOST_STEPS):
    assert generation._decoding.cache.valid_B.tolist() == [60, 60]
    assert generation._decoding.length_B.tolist() == [n_drawn] * 2
    generation.run(1)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ('eval --steps=0', '--steps must be at least 1, found 0'),
    ('eval --batch=9', 'config.eval.batch_size is 9, expected a multiple of'),
    ('eval --segment=0', 'config.eval.segment_length must be at least 1'),
    ('eval --memory=9', 'config.eval.attention_span'),
    (
      'eval --memory=0 --config.eval.attention_span=None'
      ' --config.eval.stride=2',
      'config.eval.stride is 2, expected None',
    ),
    ('generate --steps=0', '--steps must be at least 1, found 0'),
    ('generate --batch=0', '--batch must be at least 1, found 0'),
    ('generate --memory=-1', 'config.eval.memory_length must be at least 0'),
    (
      'generate --config.model.position_encoding=sinusoid'
      ' --config.model.n_positions=9',
      "position_encoding 'sinusoid' cannot generate",
    ),
  ],
)
def test_mistakes_are_one_sentence_each(experiment, capsys, arguments, words):
  what, *rest = arguments.split()
  assert main(['bench', what, experiment, *rest]) == 2
  printed = capsys.readouterr()
  assert printed.out == ''
  assert words in printed.err and printed.err.count('\n') == 1


def test_too_little_memory_for_inference():
  with pytest.raises(InputError, match='lower --batch or --memory'):
    with inference.memory_errors():
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    with inference.memory_errors():
      raise jax.errors.JaxRuntimeError('INTERNAL: a bug')
