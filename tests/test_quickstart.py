"""What `make quickstart` left behind, where it has run."""

import json
import pathlib

import pytest

WORKDIR = pathlib.Path(__file__).parents[1] / 'runs' / 'quickstart'


@pytest.fixture
def metrics() -> list[dict]:
  if not (WORKDIR / 'report.html').exists():
    pytest.skip('make quickstart has not finished here')
  lines = (WORKDIR / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_it_reaches_its_number(metrics):
  (test,) = (line for line in metrics if line['split'] == 'test')
  assert test['bpc'] < 2.1
  assert test['tokens'] > 100_000


def test_the_sample_looks_like_python(metrics):
  samples = json.loads((WORKDIR / 'samples.json').read_text())
  text = ''.join(sample['text'] for sample in samples)
  assert text.isascii()
  words = ('self', 'def ', 'return', 'if ', 'import', '    ')
  assert sum(word in text for word in words) >= 4


def test_each_step_of_a_split_stands_once(metrics):
  places = [(line['split'], line['step']) for line in metrics]
  assert len(set(places)) == len(places)
