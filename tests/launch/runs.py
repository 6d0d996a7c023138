"""A small experiment, and the environment in which launchers start it."""

import json
import os
import pathlib
import random
import stat
import sys

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
EXPERIMENT = """
from txl_jax.conversion import default_config


def get_config():
  config = default_config()
  config.update(dict(
    model=dict(vocab_size=257, n_layers=1, n_heads=2, d_model=16, d_head=8,
               d_ff=32, memory_length=8),
    data=dict(path='TEXT', cache_dir='CACHE'),
    optimizer=dict(learning_rate=1e-2, warmup_steps=5),
    train=dict(steps=60, batch_size=8, segment_length=8, log_every_steps=10,
               eval_every_steps=60, checkpoint_every_steps=20,
               tensorboard=False),
    eval=dict(batch_size=8, segment_length=64, memory_length=8),
    sample=dict(prompts=()),
  ))
  return config
"""


def write_experiment(folder: pathlib.Path) -> pathlib.Path:
  """An experiment of seconds, with its text beside it."""
  words = ['memory ', 'segment ', 'value ', 'key\n']
  text = folder / 'text.txt'
  text.write_text(''.join(random.Random(0).choices(words, k=4000)))
  source = EXPERIMENT.replace('TEXT', str(text))
  source = source.replace('CACHE', str(folder / 'prepared'))
  (folder / 'experiment.py').write_text(source)
  return folder / 'experiment.py'


def environment(folder: pathlib.Path, **variables: str) -> dict[str, str]:
  """Of a process that finds `txl` and keeps what it has compiled."""
  script = folder / 'bin' / 'txl'
  write_script(script, f'exec {sys.executable} -m txl_jax "$@"')
  write_script(folder / 'bin' / 'python3', f'exec {sys.executable} "$@"')
  return {
    **os.environ,
    'PATH': f'{script.parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    **variables,
  }


def write_script(path: pathlib.Path, body: str) -> None:
  """A command that the launchers find."""
  path.parent.mkdir(exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


def metrics(work: pathlib.Path) -> list[dict]:
  """The lines that a run has written so far."""
  path = work / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.split('\n')[:-1]]


def losses(work: pathlib.Path) -> dict[tuple[int, str], float]:
  """By step and split, each of which stands in the file once."""
  lines = metrics(work)
  found = {(line['step'], line['split']): line['loss'] for line in lines}
  assert len(found) == len(lines)
  return found
