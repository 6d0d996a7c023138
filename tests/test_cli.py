"""The command line: a whole run, and mistakes answered in one sentence."""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from txl_jax.cli import main
from txl_jax.conversion import default_config

# A job in the background begins with SIGINT ignored.
INTERRUPTIBLE = """import signal, sys, txl_jax.cli
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(txl_jax.cli.main(sys.argv[1:]))"""
EXPERIMENT = """
from txl_jax.conversion import default_config

def get_config():
  config = default_config()
  config.model.update(n_layers=2, n_heads=2, d_model=16, d_head=8, d_ff=32)
  config.model.memory_length = 8
  config.optimizer.learning_rate = 1e-2
  config.train.update(steps=4, batch_size=8, segment_length=8)
  config.train.log_every_steps = config.train.eval_every_steps = 2
  config.train.checkpoint_every_steps = 2
  config.eval.update(batch_size=8, segment_length=32, memory_length=8)
  config.sample.update(prompts=('the ',), length=20)
  return config
"""
# Its processes compile more than they compute.
QUICKLY = {**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
COMMANDS = ['train', 'eval', 'generate', 'report']


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> pathlib.Path:
  """A folder with a text and an experiment."""
  folder = tmp_path_factory.mktemp('files')
  words = 'the memory of a segment goes in and comes out as value'.split()
  choose = random.Random(0)
  text = ' '.join(choose.choice(words) for _ in range(4000))
  (folder / 'text.txt').write_text(text)
  (folder / 'experiment.py').write_text(EXPERIMENT)
  return folder


def _arguments(files: pathlib.Path, work: pathlib.Path, *more: str) -> list:
  path = f'--config.data.path={files / "text.txt"}'
  config = f'--config={files / "experiment.py"}'
  return ['train', f'--workdir={work}', config, path, *more]


def _process(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', 'txl_jax', *arguments]  # on one device
  return subprocess.run(command, capture_output=True, text=True, env=QUICKLY)


@pytest.fixture(scope='module')
def trained(files, tmp_path_factory) -> tuple[pathlib.Path, str]:
  """The work directory of a finished run, and what was printed."""
  work = tmp_path_factory.mktemp('trained') / 'run'
  done = _process(*_arguments(files, work))
  assert (done.returncode, done.stderr) == (0, '')
  return work, done.stdout


def _lines(work: pathlib.Path) -> list[dict]:
  text = (work / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_training_end_to_end(trained):
  work, printed = trained
  names = ['best', 'checkpoints', 'config.json', 'lock', 'metrics.jsonl']
  names += ['report.html', 'run.json', 'samples.json', 'tensorboard']
  names += ['vocabulary.json']
  assert sorted(path.name for path in work.iterdir()) == names
  places = [(line['step'], line['split']) for line in _lines(work)]
  expected = [(step, x) for step in (2, 4) for x in ('train', 'validation')]
  assert places == [*expected, (4, 'test')]
  (sample,) = json.loads((work / 'samples.json').read_text())
  assert sample['prompt'] == 'the ' and sample['text']
  assert 'step 4/4' in printed and 'test at step 4' in printed
  assert f'the {sample["text"]}' in printed
  assert printed.splitlines()[-1] == f'Report: {work / "report.html"}'


def test_a_finished_run_says_so_and_stays(trained, files, tmp_path, capsys):
  work = pathlib.Path(shutil.copytree(trained[0], tmp_path / 'run'))
  before = _snapshot(work)
  assert main(_arguments(files, work)) == 0
  assert f'{work} is finished: 4 steps' in capsys.readouterr().out
  # The report is not written anew; run.json tells of the present devices.
  after = _snapshot(work)
  changed = {path.name for path in after if after[path] != before.get(path)}
  assert changed <= {'run.json'}


def test_evaluation_repeats_the_test_line(trained):
  work = trained[0]
  done = _process('eval', f'--workdir={work}')
  assert (done.returncode, done.stderr) == (0, '')
  result = json.loads(done.stdout.splitlines()[-1])
  (line,) = (x for x in _lines(work) if x['split'] == 'test')
  assert (result['split'], result['step']) == ('test', 4)
  assert result['nll'] == line['loss']
  for name in ('tokens', 'characters', 'ppl', 'bpc'):
    assert result[name] == line[name]
  assert result['ppl'] == pytest.approx(math.exp(result['nll']))
  bits = result['nll'] * result['tokens'] / math.log(2)
  assert result['bpc'] == pytest.approx(bits / result['characters'])


def test_evaluation_of_another_split_with_other_settings(trained, capsys):
  arguments = ['eval', f'--workdir={trained[0]}', '--split=validation']
  results = []
  for more in ([], ['--config.eval.memory_length=0'], ['--split=train']):
    assert main(arguments + more) == 0
    results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
  whole, forgetful, train = results
  (*_, line) = (x for x in _lines(trained[0]) if x['split'] == 'validation')
  # The run used one device, this process uses eight.
  assert whole['nll'] == pytest.approx(line['loss'], rel=1e-6)
  assert (whole['memory_length'], forgetful['memory_length']) == (8, 0)
  assert forgetful['nll'] != whole['nll']
  assert forgetful['tokens'] == whole['tokens']
  assert train['tokens'] > 10 * whole['tokens']


def _generate(work: pathlib.Path, capsys, *more: str) -> str:
  assert main(['generate', f'--workdir={work}', '--length=12', *more]) == 0
  captured = capsys.readouterr()
  assert captured.err == ''
  return captured.out


def test_generation_follows_from_the_seed(trained, capsys):
  work, _ = trained
  first = _generate(work, capsys, '--prompt=the memory', '--seed=1')
  assert first.startswith('the memory') and len(first) > len('the memory\n')
  assert _generate(work, capsys, '--prompt=the memory', '--seed=1') == first
  assert _generate(work, capsys, '--prompt=the memory', '--seed=2') != first
  greedy = ['--prompt=the memory', '--temperature=0']
  texts = {_generate(work, capsys, *greedy, f'--seed={i}') for i in (1, 2)}
  assert len(texts) == 1


def test_the_report_is_written_anew(trained, tmp_path, capsys):
  work = pathlib.Path(shutil.copytree(trained[0], tmp_path / 'run'))
  (work / 'report.html').unlink()
  assert main(['report', f'--workdir={work}']) == 0
  assert capsys.readouterr().out == f'{work / "report.html"}\n'
  assert '<html' in (work / 'report.html').read_text()


@pytest.mark.parametrize('arguments', [[], *([name] for name in COMMANDS)])
def test_help(arguments, capsys):
  with pytest.raises(SystemExit, match='0'):
    main([*arguments, '--help'])
  text = capsys.readouterr().out
  expected = [f'{arguments[0]} [-h] --workdir'] if arguments else COMMANDS
  if arguments == ['train']:
    expected += [name for part in default_config().values() for name in part]
  if arguments == ['generate']:
    expected += ['--prompt', '--length', '--temperature', '--top_k', '--seed']
  assert [word for word in expected if word not in text] == []


# Mistakes ---------------------------------------------------------------------


def _snapshot(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def _refused(arguments: list[str], capsys) -> str:
  """The sentence that a mistake is answered with."""
  assert main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith('txl: ') and captured.err.count('\n') == 1
  assert 'Traceback' not in captured.err
  return captured.err


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.model.d_modle=8', 'did you mean config.model.d_model?'),
    ('--config.train.steps=many', 'config.train.steps must be of type int'),
    ('--config.train.steps=0', 'config.train.steps must be at least 1'),
    ('--config.train.batch_size=12', 'batch_size is 12, expected a multiple'),
    ('--config.eval.batch_size=12', 'batch_size is 12, expected a multiple'),
    ('--config.model.vocab_size=100', 'config.model.vocab_size is 100, but'),
    ('--config.model.vocab_size=256', 'has the id 256; its vocabulary has 257'),
    ('--config.train.segment_length=5000', 'fewer than the 40,000 of one step'),
    ('--config.data.path={files}/nowhere.txt', 'nowhere.txt: No such file'),
    ('--config.data.path={files}/empty.txt', 'empty.txt is empty'),
    ('--config.data.path={files}/short.txt', 'short.txt has 5 bytes, too few'),
    ('--config={files}/broken.py', 'broken.py cannot be loaded: SyntaxError'),
    ('--steps=8', "'--steps=8' is no argument"),
    ('--workdir={files}/text.txt/run', 'cannot make the work directory'),
  ],
)
def test_training_refuses(files, tmp_path, capsys, argument, message):
  (files / 'empty.txt').touch()
  (files / 'short.txt').write_text('12345')
  (files / 'broken.py').write_text('def get_config(:\n')
  work, before = tmp_path / 'run', _snapshot(files)
  argument = argument.format(files=files)
  assert message in _refused(_arguments(files, work, argument), capsys)
  assert not work.exists()
  assert _snapshot(files) == before


def test_another_runs_work_directory_is_refused(trained, files, capsys):
  work, _ = trained
  before = _snapshot(work)
  more = '--config.model.d_ff=48'
  error = _refused(_arguments(files, work, more), capsys)
  assert 'config.model.d_ff was 32, now 48' in error
  assert 'choose another --workdir' in error
  assert _snapshot(work) == before


@pytest.mark.parametrize('command', ['eval', 'generate', 'report'])
def test_a_folder_without_a_run_is_refused(tmp_path, capsys, command):
  for folder in (tmp_path, tmp_path / 'nowhere'):
    error = _refused([command, f'--workdir={folder}'], capsys)
    assert str(folder) in error
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['eval', '--foo=3'], "'--foo=3'"),
    (['eval', '--config.train.steps=3'], 'only --config.eval.FIELD=VALUE'),
    (['eval', '--config.eval.batchsize=8'], 'config.eval.batch_size?'),
    (['eval', '--config.eval.batch_size=3'], 'expected a multiple of the 8'),
    (['generate', '--length=0'], 'length'),
    (['generate', '--temperature=-1'], 'temperature'),
    (['report', '--foo=3'], "'--foo=3' is no argument of this command"),
  ],
)
def test_the_other_commands_refuse(trained, capsys, arguments, message):
  work, _ = trained
  before = _snapshot(work)
  error = _refused([*arguments, f'--workdir={work}'], capsys)
  assert message in error
  assert _snapshot(work) == before


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('', 'required: COMMAND'),
    ('fly', "invalid choice: 'fly'"),
    ('train --workdir=x', 'required: --config'),
    ('eval', 'required: --workdir'),
    ('eval --workdir=x --split=dev', "invalid choice: 'dev'"),
  ],
)
def test_usage(capsys, arguments, message):
  with pytest.raises(SystemExit, match='2'):
    main(arguments.split())
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['config.json', 'run.json'])
def test_a_damaged_work_directory_is_refused(trained, tmp_path, capsys, name):
  work = pathlib.Path(shutil.copytree(trained[0], tmp_path / 'run'))
  for text in ('', '{', '[]', '{"model": 3}'):
    (work / name).write_text(text)
    _refused(['eval', f'--workdir={work}'], capsys)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(files, tmp_path, capsys):
  work = tmp_path / 'run'
  long = _arguments(files, work, '--config.train.steps=20000')
  command = [sys.executable, '-c', INTERRUPTIBLE, *long]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  with subprocess.Popen(command, **pipes, env=QUICKLY) as running:
    steps = (line for line in running.stdout if line.startswith('step '))
    assert '4/20000' in [next(steps), next(steps)][1]
    running.send_signal(signal.SIGINT)
    _, error = running.communicate()
  assert error == 'txl: interrupted; run the same command to go on\n'
  assert running.returncode == 130
  newest = max(int(path.name) for path in (work / 'checkpoints').iterdir())
  assert main(_arguments(files, work, '--config.train.steps=1')) == 0
  assert f'Going on from step {newest:,}.' in capsys.readouterr().out
