"""`txl eval --losses` and the analyses of a run, from end to end."""

import json
import pathlib
import random

import numpy as np
import pytest

from txl_jax.cli import main

pytestmark = pytest.mark.slow

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(n_layers=1, n_heads=2, d_model=16, d_head=8, d_ff=32)
  config.model.memory_length = 8
  config.train.update(steps=1, batch_size=8, segment_length=8)
  config.train.tensorboard = False
  config.eval.update(batch_size=8, segment_length=32, memory_length=8)
  config.sample.prompts = ()
  return config
"""


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> pathlib.Path:
  """A run of one step."""
  folder = tmp_path_factory.mktemp('run')
  words = 'the memory of a segment goes in and comes out as value'.split()
  choose = random.Random(0)
  text = ' '.join(choose.choice(words) for _ in range(2000))
  (folder / 'text.txt').write_text(text)
  (folder / 'experiment.py').write_text(EXPERIMENT)
  config = f'--config={folder / "experiment.py"}'
  path = f'--config.data.path={folder / "text.txt"}'
  assert main(['train', config, path, f'--workdir={folder / "run"}']) == 0
  return folder / 'run'


def _run(capsys, *arguments: str) -> list[dict]:
  capsys.readouterr()
  assert main(list(map(str, arguments))) == 0
  lines = capsys.readouterr().out.splitlines()
  return [json.loads(line) for line in lines if line.startswith('{')]


def test_evaluation_writes_the_losses(work, tmp_path, capsys):
  path = tmp_path / 'made' / 'losses.npy'
  (line,) = _run(capsys, 'eval', f'--workdir={work}', f'--losses={path}')
  losses = np.load(path)
  assert (len(losses), losses.dtype) == (line['tokens'], np.float32)
  assert losses.mean(dtype=float) == line['nll']
  assert [x.name for x in path.parent.iterdir()] == ['losses.npy']
  assert main(['eval', f'--workdir={work}']) == 0
  said = capsys.readouterr().out.splitlines()[-2]
  assert f'test: bpc {line["bpc"]:.4f}, loss {line["nll"]:.4f}; ' in said
  assert said.endswith(
    f'{line["tokens"]:,} tokens, 8 rows, warm-up 0, segment 32, memory 8, '
    'attention span none, clamp none'
  )


def _analysis(out: pathlib.Path, *names: str) -> dict:
  """The JSON of an analysis, whose plots lie beside it, and nothing else."""
  found = sorted(path.name for path in out.parent.iterdir())
  pictures = [f'{out.name}{x}{y}' for x in names for y in ('.png', '.svg')]
  assert found == sorted([*pictures, f'{out.name}.json'])
  for name in pictures:
    assert (out.parent / name).stat().st_size > 2000
  return json.loads((out.parent / f'{out.name}.json').read_text())


def test_sweep(work, tmp_path, capsys):
  out = tmp_path / 'plots' / 'memory'
  _run(
    *(capsys, 'sweep', f'--workdir={work}', '--memory=8,0,4', '--limit=200'),
    f'--out={out}',
  )
  facts = _analysis(out, '')
  assert [line['memory_length'] for line in facts['lengths']] == [0, 4, 8]
  assert facts['lengths'][2]['tokens'] == 199
  assert facts['trained_with_memory_length'] == 8


def test_attention(work, tmp_path, capsys):
  text, out = tmp_path / 'text.txt', tmp_path / 'plots' / 'maps'
  text.write_text('in and out of the memory ' * 4)
  _run(
    *(capsys, 'attention', f'--workdir={work}', f'--text={text}'),
    *('--keys=20', '--queries=9', '--shown=12', f'--out={out}'),
  )
  arrays = np.load(out.with_name('maps.npz'))
  out.with_name('maps.npz').unlink()
  facts = _analysis(out, '-average', '-terms', '-example')
  assert arrays['average_NHW'].shape == (1, 2, 20)
  assert facts['tokens'] == 49 and len(facts['example']) == 20
  share = arrays['average_NHW'][0, 0, :10].sum()
  assert facts['share_of_the_last_10'][0][0] == pytest.approx(share, rel=1e-5)


def test_effective_context(work, tmp_path, capsys):
  out = tmp_path / 'plots' / 'recl'
  _run(
    *(capsys, 'recl', work, work, '--step=2', '--longest=6', '--batch=8'),
    *('--positions=11', f'--out={out}'),
  )
  facts = _analysis(out, '')
  assert (facts['contexts'], facts['positions']) == ([2, 4, 6], 11)
  one, other = facts['losses']
  assert one == other and len(one) == 3
  assert [line['share'] for line in facts['results']] == [0.1, 0.5, 1.0]


def test_fragmentation(work, tmp_path, capsys):
  out = tmp_path / 'plots' / 'places'
  _run(
    *(capsys, 'fragmentation', work, '--segment=4', '--limit=300'),
    *('--config.eval.memory_length=0', f'--out={out}'),
  )
  (line,) = _analysis(out, '')['models']
  assert sum(line['count']) == 299 and len(line['loss']) == 4
  assert line['settings']['memory_length'] == 0


def test_speed(work, tmp_path, capsys):
  out = tmp_path / 'plots' / 'speed'
  _run(
    *(capsys, 'speed', f'--config={work.parent / "experiment.py"}'),
    *('--lengths=12', '--batch=8', '--steps=2', f'--out={out}'),
    *('--config.eval.segment_length=4', '--config.model.vocab_size=50'),
  )
  facts = _analysis(out, '')
  assert [line['attention_length'] for line in facts['lengths']] == [12]
  for line in facts['lengths']:
    ratio = line['vanilla_milliseconds_per_token']
    ratio /= line['milliseconds_per_token']
    assert line['ratio'] == pytest.approx(ratio, rel=1e-3)
    assert line['vanilla_parameters'] == line['parameters']
