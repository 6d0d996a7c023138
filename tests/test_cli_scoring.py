"""`txl score`, and what it and the analyses refuse."""

import io
import json
import pathlib
import sys

import jax
import pytest

import txl_jax
from txl_jax.cli import main
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.data.words import WordVocabulary

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  return default_config()
"""
MODEL = txl_jax.ModelConfig(
  vocab_size=257, n_layers=1, n_heads=1, d_model=8, d_head=8, d_ff=8,
  memory_length=100, init_std=0.3,
)  # fmt: skip


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> pathlib.Path:
  """An exported model with random weights."""
  folder = tmp_path_factory.mktemp('model')
  params = txl_jax.init_params(MODEL, jax.random.key(0))
  txl_jax.save_pretrained(folder, MODEL, params, ByteVocabulary())
  return folder


def _run(capsys, *arguments: str) -> list[dict]:
  capsys.readouterr()
  assert main(list(map(str, arguments))) == 0
  lines = capsys.readouterr().out.splitlines()
  return [json.loads(line) for line in lines if line.startswith('{')]


def _score(capsys, path, *more: str) -> list[dict]:
  return _run(capsys, 'score', f'--text={path}', *more)


def test_a_text_of_ones_own(model, tmp_path, capsys):
  path = tmp_path / 'text.txt'
  path.write_bytes(b'the memory\nof \xff a segment\n')
  (total,) = _score(capsys, path, f'--model={model}')
  assert total['tokens'] == total['characters'] == 26
  assert (total['documents'], total['batch_size']) == (1, 1)
  assert total['nll'] == total['nll_sum'] / 26


def test_lines_are_documents_of_their_own(model, tmp_path, capsys):
  text, table = tmp_path / 'text.txt', tmp_path / 'tokens.tsv'
  text.write_text('as value\n\nas value\nthe \u20ac\n')
  *lines, total = _score(
    capsys, text, f'--model={model}', '--lines', f'--tokens={table}'
  )
  assert [line['document'] for line in lines] == [0, 1, 2, 3]
  assert [line['tokens'] for line in lines] == [8, 0, 8, 7]
  assert lines[0]['nll_sum'] == pytest.approx(lines[2]['nll_sum'], rel=1e-5)
  assert total['tokens'] == 23
  sums = [line['nll_sum'] for line in lines]
  assert total['nll_sum'] == pytest.approx(sum(sums), rel=1e-6)
  # The table has them in order, and what they are.
  head, *rows = (row.split('\t') for row in table.read_text().splitlines())
  assert head == ['document', 'token', 'id', 'text', 'loss']
  assert [int(row[0]) for row in rows] == [0] * 8 + [2] * 8 + [3] * 7
  raw = bytes(int(row[2]) for row in rows)
  assert raw.decode() == 'as valueas valuethe \u20ac'
  assert ''.join(json.loads(row[3]) for row in rows[:8]) == 'as value'
  for i, line in enumerate(lines):
    of_line = [float(row[4]) for row in rows if int(row[0]) == i]
    assert sum(of_line) == pytest.approx(line['nll_sum'], abs=1e-5)
  # Scored alone, a line has the same loss.
  text.write_text('the \u20ac')
  (alone,) = _score(capsys, text, f'--model={model}')
  assert alone['nll_sum'] == pytest.approx(lines[3]['nll_sum'], rel=1e-5)


def test_a_text_from_the_standard_input(model, tmp_path, capsys, monkeypatch):
  (tmp_path / 'text.txt').write_text('a segment')
  (expected,) = _score(capsys, tmp_path / 'text.txt', f'--model={model}')
  stream = io.TextIOWrapper(io.BytesIO(b'a segment'))
  monkeypatch.setattr(sys, 'stdin', stream)
  assert _score(capsys, '-', f'--model={model}') == [expected]


def test_words_begin_after_a_line(tmp_path, capsys):
  vocabulary = WordVocabulary(['<eos>', '<unk>', 'as', 'value'])
  sizes = txl_jax.ModelConfig(4, 1, 1, 8, 8, 8, memory_length=9)
  params = txl_jax.init_params(sizes, jax.random.key(0))
  txl_jax.save_pretrained(tmp_path / 'model', sizes, params, vocabulary)
  (tmp_path / 'text.txt').write_text('as value\nas is\n')
  (total,) = _score(
    capsys, tmp_path / 'text.txt', f'--model={tmp_path / "model"}'
  )
  assert total['tokens'] == 6  # as value <eos> as <unk> <eos>


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ('sweep --model=MODEL --out=x', 'expected --text=FILE too'),
    (
      'sweep --model=MODEL --out=x --memory=a',
      "with commas between, found 'a'",
    ),
    ('sweep --model=MODEL --out=x --memory=-1', 'at least 0, found [-1]'),
    ('sweep --model=MODEL --out=x --text=TEXT --limit=1', 'at least 2'),
    ('sweep --model=MODEL --out=', "--out must be a name, found ''"),
    ('sweep --model=nowhere --out=x', 'cannot read nowhere'),
    ('recl nowhere --out=x --batch=9', '--batch is 9, expected a multiple'),
    ('recl nowhere --out=x --step=9 --longest=9', 'at least two steps (18)'),
    ('recl nowhere --out=x', 'nowhere is no work directory'),
    ('attention --model=MODEL --out=x --keys=0', '--keys must be at least 1'),
    ('attention --model=MODEL --out=x --text=TEXT', 'the text has 2 tokens'),
    ('fragmentation nowhere --out=x --segment=0', '--segment must be at least'),
    ('speed --config=EXPERIMENT --out=x --lengths=0', '--lengths must be'),
    ('speed --config=EXPERIMENT --out=x --batch=3', 'expected a multiple of'),
  ],
)
def test_the_analyses_refuse(model, tmp_path, capsys, arguments, words):
  (tmp_path / 'text').write_text('x')
  experiment = tmp_path / 'experiment.py'
  experiment.write_text(EXPERIMENT)
  for name, path in (
    *(('MODEL', model), ('TEXT', tmp_path / 'text')),
    *(('EXPERIMENT', experiment), ('--out=x', f'--out={tmp_path}/x')),
  ):
    arguments = arguments.replace(name, str(path))
  capsys.readouterr()
  assert main(arguments.split()) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ('--text=nowhere', 'cannot read nowhere'),
    ('--text=EMPTY', 'is empty, expected text'),
    ('--text=TEXT --tokens=table.txt', 'ends with .tsv'),
    ('--text=TEXT --foo=3', "'--foo=3'"),
    ('--text=TEXT --config.eval.segment_length=0', 'at least 1'),
  ],
)
def test_mistakes_are_told(model, tmp_path, capsys, arguments, words):
  (tmp_path / 'text').write_text('x')
  (tmp_path / 'empty').write_text('')
  arguments = arguments.replace('TEXT', str(tmp_path / 'text'))
  arguments = arguments.replace('EMPTY', str(tmp_path / 'empty'))
  assert main(['score', f'--model={model}', *arguments.split()]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1
