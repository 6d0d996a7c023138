"""Words from the command line: prepared, trained on, written."""

import json
import pathlib
import random

import pytest

from txl_jax.cli import main

EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(n_layers=1, n_heads=2, d_model=16, d_head=8, d_ff=32)
  config.model.update(memory_length=8, vocab_size=13)
  config.data.tokenizer = 'words'
  config.train.update(steps=2, batch_size=8, segment_length=8)
  config.eval.update(batch_size=8, segment_length=16, memory_length=8)
  config.sample.update(prompts=('memory of',), length=9)
  return config
"""


@pytest.fixture(scope='module')
def arguments(tmp_path_factory) -> list[str]:
  folder = tmp_path_factory.mktemp('files')
  words = 'memory of a segment goes in and comes out as'.split()
  choose = random.Random(0)
  lines = [' '.join(choose.choices(words, k=9)) for _ in range(300)]
  (folder / 'text.txt').write_text('\n'.join(lines) + '\n')
  (folder / 'experiment.py').write_text(EXPERIMENT)
  return [
    f'--config={folder / "experiment.py"}',
    f'--config.data.path={folder / "text.txt"}',
    f'--config.data.cache_dir={folder / "cache"}',
  ]


def test_prepare_describes_the_text(arguments, capsys):
  assert main(['prepare', *arguments]) == 0
  printed = capsys.readouterr().out
  assert 'train       2,' in printed and 'tokens in 1 document' in printed
  assert '0.00% unknown' in printed
  assert '--config.model.vocab_size=13' in printed
  assert main(['prepare', *arguments]) == 0
  again = capsys.readouterr().out
  assert again == printed[printed.index('Text ') :]


def test_the_size_of_the_vocabulary_is_told(arguments, tmp_path, capsys):
  command = ['train', *arguments, f'--workdir={tmp_path / "run"}']
  assert main([*command, '--config.model.vocab_size=50']) == 2
  error = capsys.readouterr().err
  assert 'the vocabulary of text.txt has 13 tokens' in error


@pytest.mark.slow
def test_words_go_in_and_come_out(arguments, tmp_path, capsys):
  work = pathlib.Path(tmp_path / 'run')
  assert main(['train', *arguments, f'--workdir={work}']) == 0
  printed = capsys.readouterr().out
  assert 'ppl' in printed and 'bpc' not in printed
  (sample,) = json.loads((work / 'samples.json').read_text())
  words = set(json.loads((work / 'vocabulary.json').read_text())['words'])
  assert set(sample['text'].split()) <= words
  command = ['generate', f'--workdir={work}', '--prompt=memory of', '--seed=0']
  assert main([*command, '--length=9']) == 0
  assert capsys.readouterr().out == f'memory of{sample["text"]}\n'
  assert 'perplexity' in (work / 'report.html').read_text()
