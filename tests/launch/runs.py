"""A small quickstart, and the environment in which launchers start it."""

import json
import os
import pathlib
import random
import stat
import sys

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
QUICKSTART = ROOT / 'experiments' / 'quickstart.py'
SMALL = """
  model.n_layers=1 model.n_heads=2 model.d_model=16 model.d_head=8
  model.d_ff=32 model.memory_length=8 model.unroll=1
  train.steps=40 train.batch_size=8 train.segment_length=8
  train.log_every_steps=5 train.eval_every_steps=40
  train.checkpoint_every_steps=10 train.tensorboard=False
  eval.batch_size=8 eval.segment_length=64 eval.memory_length=8
  optimizer.warmup_steps=5 sample.prompts=()
"""


def quickstart(folder: pathlib.Path) -> list[str]:
  """Options of a quickstart that takes seconds, with its text in a folder."""
  words = ['memory ', 'segment ', 'value ', 'key\n']
  text = folder / 'text.txt'
  text.write_text(''.join(random.Random(0).choices(words, k=4000)))
  fields = [*SMALL.split(), f'data.path={text}', f'data.cache_dir={folder}']
  return [f'--config={QUICKSTART}', *(f'--config.{field}' for field in fields)]


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
