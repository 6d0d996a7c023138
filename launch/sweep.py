#!/usr/bin/env python3
"""Runs that differ in a few fields, and the table of their results.

  launch/sweep.py slurm runs/rates --config=experiments/quickstart.py \\
    --grid=optimizer.learning_rate=1e-3,3e-3 --grid=train.seed=0,1 \\
    -- --gpus-per-node=1
  launch/sweep.py table runs/rates

Each point of the grid trains in a folder of its own, runs/rates/000 and so on.
Fields that all share are --config.SECTION.FIELD=VALUE, as for `txl train`.

actions:
  slurm  an array of launch/slurm.sbatch; sbatch's own options behind --
  tpu    `launch/tpu.sh run` for each, on a TPU of its own; its options behind
         --, and a FOLDER such as bucket/rates
  local  one after the other on this machine
  point  only the one that SLURM_ARRAY_TASK_ID counts
  table  what the runs in the folder have reached, the best first

The same command goes on with runs that were interrupted.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from txl_jax.commands.arguments import read_config
from txl_jax.errors import InputError
from txl_jax.training.metrics import MetricsFile

LAUNCH = pathlib.Path(__file__).resolve().parent


def points(grid: list[str]) -> list[list[str]]:
  """The overrides of each point.

  Args:
    grid: SECTION.FIELD=VALUE,VALUE,... of each axis.

  Raises:
    InputError: for an axis without a value.
  """
  axes = []
  for text in grid:
    field, _, values = text.partition('=')
    if not all(values.split(',')):
      raise InputError(
        f'--grid must be SECTION.FIELD=VALUE,..., found {text!r}'
      )
    axes.append([f'--config.{field}={value}' for value in values.split(',')])
  return [list(point) for point in itertools.product(*axes)]


def commands(options: argparse.Namespace, shared: list[str]) -> list[list[str]]:
  """`txl train` for each point, whose fields have been checked.

  Raises:
    InputError: for a field or a value that is not right.
  """
  made = []
  for i, point in enumerate(points(options.grid)):
    overrides = [*shared, *point]
    read_config(options.config, overrides)
    work = f'--workdir={options.folder}/{i:03}'
    made.append(
      ['txl', 'train', f'--config={options.config}', work, *overrides]
    )
  return made


def slurm(
  options: argparse.Namespace, made: list[list[str]], rest: list[str]
) -> list[list[str]]:
  """One command, for all points."""
  own = [str(LAUNCH / 'sweep.py'), 'point', *rest]
  array = f'--array=0-{len(made) - 1}'
  return [['sbatch', array, *options.extra, str(LAUNCH / 'slurm.sbatch'), *own]]


def tpu(
  options: argparse.Namespace, made: list[list[str]], rest: list[str]
) -> list[list[str]]:
  """A command for each point."""
  name = pathlib.Path(options.folder).name.replace('_', '-').lower()
  program = str(LAUNCH / 'tpu.sh')
  return [
    [program, 'run', f'{name}-{i:03}', *options.extra, '--', *command]
    for i, command in enumerate(made)
  ]


def execute(commands: list[list[str]], at_once: int) -> int:
  """Runs commands; the code is that of the first that failed."""
  for program in {command[0] for command in commands}:
    # A missing one is told before any has begun.
    if not shutil.which(program):
      raise InputError(f'there is no command {program!r} here')
  with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    codes = list(pool.map(subprocess.call, commands))
  return next((code for code in codes if code), 0)


def point(made: list[list[str]]) -> None:
  """Becomes the command that the array's task stands for."""
  index = os.environ.get('SLURM_ARRAY_TASK_ID', '')
  if not index.isdecimal() or int(index) >= len(made):
    raise InputError(
      f'SLURM_ARRAY_TASK_ID must be below {len(made)}, found {index!r}'
    )
  os.execvp('txl', made[int(index)])


def table(folder: str) -> str:
  """What the runs in a folder have reached, the best validation loss first.

  Raises:
    InputError: if there is none.
  """
  configs = {
    path.parent: _flat(json.loads(path.read_text()))
    for path in sorted(pathlib.Path(folder).glob('*/config.json'))
  }
  if not configs:
    raise InputError(f'{folder} has no work directories of runs')
  first, *others = configs.values()
  fields = [
    name for name in first if any(each[name] != first[name] for each in others)
  ]
  rows = [
    [
      work.name,
      *(str(config[name]) for name in fields),
      *_reached(work, config),
    ]
    for work, config in configs.items()
  ]
  # Those without a validation come last.
  rows.sort(key=lambda row: (row[-2] == '-', row[-2].rjust(12)))
  heads = ['run', *fields, 'step', 'of', 'valid', 'test']
  widths = [max(map(len, column)) for column in zip(heads, *rows)]
  return '\n'.join(
    '  '.join(cell.rjust(width) for cell, width in zip(row, widths))
    for row in (heads, *rows)
  )


def _flat(config: dict) -> dict:
  return {
    f'{section}.{name}': value
    for section, values in config.items()
    for name, value in values.items()
  }


def _reached(work: pathlib.Path, config: dict) -> list[str]:
  """Step, steps, best validation loss and test loss of a run."""
  lines = MetricsFile(work / 'metrics.jsonl', writing=False).read()
  step = max((line['step'] for line in lines), default=0)
  losses = [
    min(
      (line['loss'] for line in lines if line['split'] == split), default=None
    )
    for split in ('validation', 'test')
  ]
  told = ['-' if loss is None else f'{loss:.4f}' for loss in losses]
  return [str(step), str(config['train.steps']), *told]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='launch/sweep.py',
    usage='%(prog)s [--dry-run] ACTION FOLDER OPTION... [-- OPTION...]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  actions = ('slurm', 'tpu', 'local', 'point', 'table')
  add = parser.add_argument
  add('action', choices=actions, help='as above')
  add('folder', help='of the work directories')
  add('--config', help='experiment, FILE.py')
  add('--grid', action='append', default=[], help='FIELD=VALUE,VALUE,...')
  add('--at-once', type=int, default=1, help='TPUs at the same time')
  add('--dry-run', action='store_true', help='print the commands instead')
  return parser


def _run(argv: list[str]) -> int:
  split = argv.index('--') if '--' in argv else len(argv)
  own, extra = argv[:split], argv[split + 1 :]
  options, shared = _parser().parse_known_args(own)
  options.extra = extra
  if options.action == 'table':
    print(table(options.folder))
    return 0
  if not (options.config and options.grid):
    raise InputError('--config and at least one --grid are needed; see --help')
  made = commands(options, shared)
  if options.action == 'point':
    point(made)
  rest = [word for word in own if word != '--dry-run']
  rest.remove(options.action)
  if options.action != 'local':
    made = {'slurm': slurm, 'tpu': tpu}[options.action](options, made, rest)
  if not options.dry_run:
    return execute(made, options.at_once)
  print('\n'.join(map(shlex.join, made)))
  return 0


def main(argv: list[str]) -> int:
  """Starts the runs, or tells of them; the exit code is 2 for bad input."""
  try:
    return _run(argv)
  except InputError as error:
    print(f'sweep.py: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
