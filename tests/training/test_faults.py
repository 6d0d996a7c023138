"""Runs that are killed, and runs of several processes, as real processes."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from txl_jax.training.run import load_run

# For each signal.
STEPS = 100
EXPERIMENT = """
from txl_jax.conversion import default_config


def get_config():
  config = default_config()
  config.update(dict(
    model=dict(vocab_size=257, n_layers=2, n_heads=2, d_model=16, d_head=8,
               d_ff=32, memory_length=8, dropout=0.2, attention_dropout=0.1),
    data=dict(path='TEXT'),
    optimizer=dict(learning_rate=1e-2, warmup_steps=5),
    train=dict(steps=20, batch_size=8, segment_length=8, log_every_steps=5,
               eval_every_steps=50, checkpoint_every_steps=20,
               tensorboard=False),
    eval=dict(batch_size=8, segment_length=64, memory_length=8),
    sample=dict(prompts=()),
  ))
  return config
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """With an experiment, its text, and what has been compiled."""
  folder = tmp_path_factory.mktemp('faults')
  words = ['memory ', 'segment ', 'value ', 'key\n']
  text = folder / 'text.txt'
  text.write_text(''.join(random.Random(0).choices(words, k=8000)))
  (folder / 'experiment.py').write_text(EXPERIMENT.replace('TEXT', str(text)))
  return folder


def _start(
  folder: pathlib.Path, work: str, *options: str, devices: int = 1, **variables
) -> subprocess.Popen:
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_NUM_CPU_DEVICES': str(devices),
    **variables,
  }
  command = [sys.executable, '-m', 'txl_jax', 'train']
  command += [f'--config={folder / "experiment.py"}']
  command += [f'--workdir={folder / work}', *options]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return subprocess.Popen(command, env=environment, **pipes)


def _finish(process: subprocess.Popen, code: int = 0) -> str:
  said, _ = process.communicate(timeout=300)
  assert process.returncode == code, said[-3000:]
  return said


def _lines(work: pathlib.Path) -> list[dict]:
  path = work / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  parsed = [json.loads(line) for line in text.split('\n')[:-1]]
  for line in parsed:
    line.pop('tokens_per_second', None)
  return parsed


def _stop_after(
  process: subprocess.Popen, work: pathlib.Path, step: int, what: int
) -> None:
  """Sends a signal when a step has been logged."""
  while process.poll() is None:
    if any(line['step'] >= step for line in _lines(work)):
      process.send_signal(what)
      return
    time.sleep(0.01)


def _results(work: pathlib.Path) -> tuple[list[dict], dict]:
  run = load_run(work, pytest.fail, checkpoint='last')
  return _lines(work), jax.device_get(run.params)


@pytest.mark.slow
def test_killed_at_random_and_stopped_by_signals(folder):
  _survive(folder, kills=5, terms=2)


@pytest.mark.full
def test_killed_twenty_times(folder):
  _survive(folder, kills=20, terms=5)


def _survive(folder, *, kills: int, terms: int) -> None:
  choose = random.Random(kills)
  work, undisturbed = folder / f'killed{kills}', folder / f'undisturbed{kills}'
  steps = f'--config.train.steps={STEPS * (kills + terms)}'
  signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  choose.shuffle(signals)
  reached = 0
  for what in signals:
    process = _start(folder, work.name, steps)
    _stop_after(process, work, reached + choose.randrange(1, 25), what)
    said, _ = process.communicate(timeout=300)
    expected = 77 if what == signal.SIGTERM else -signal.SIGKILL
    assert process.returncode == expected, said[-3000:]
    reached = max(line['step'] for line in _lines(work))
  for name in (work.name, undisturbed.name):
    _finish(_start(folder, name, steps))
  lines, params = _results(work)
  expected_lines, expected_params = _results(undisturbed)
  key = lambda line: (line['step'], line['split'])  # noqa: E731
  assert sorted(lines, key=key) == sorted(expected_lines, key=key)
  for a, b in zip(
    jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True
  ):
    assert a.tobytes() == b.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ['fsdp', 'tensor'])
def test_two_processes_make_the_same_run(folder, mesh):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  processes = [
    _start(
      folder,
      f'two_{mesh}',
      '--config.train.eval_every_steps=20',
      f'--config.mesh.{mesh}=2',
      devices=4,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(i),
    )
    for i in range(2)
  ]
  for process in processes:
    _finish(process)
  _finish(_start(folder, f'one_{mesh}', '--config.train.eval_every_steps=20'))
  one, two = (_lines(folder / f'{n}_{mesh}') for n in ('one', 'two'))
  assert [line['step'] for line in one] == [line['step'] for line in two]
  for a, b in zip(one, two):
    assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)
    assert a.get('bpc') == pytest.approx(b.get('bpc'), rel=1e-5)
