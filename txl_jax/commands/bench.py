"""`txl bench train`: its arguments, and the lines it prints.

JSON goes to the standard output, one object for each implementation measured;
what a person watches goes to the standard error.
"""

import argparse
import json
import sys

from txl_jax.commands.arguments import (
  Commands,
  add_command,
  add_config,
  fields_help,
  read_config,
)
from txl_jax.config import Config
from txl_jax.errors import InputError

EXAMPLES = """examples:
  txl bench train --config=experiments/enwik8_base.py \\
    --config.model.dtype=bfloat16
  txl bench train --config=experiments/wt103_large.py --batch=16 --breakdown \\
    --config.model.dtype=bfloat16
  txl bench train --config=experiments/enwik8_base.py --compare=xla,reference

No text is needed: ids are random, as frequent as words are. --compare sets
config.model.attention_implementation, once for each name. The fields that are
printed are explained in docs/performance.md.
"""


def add_bench(commands: Commands) -> None:
  """Declares `txl bench`."""
  parser = add_command(
    commands,
    'bench',
    run,
    'Measure the speed of training; prints JSON.',
    description='Measure the speed of training; prints a JSON object a line.',
    epilog=f'{EXAMPLES}\n{fields_help()}',
  )
  add = parser.add_argument
  add('what', choices=('train',), help='what is measured: a training step')
  add_config(parser)
  add('--batch', type=int, help="rows (default: the experiment's)")
  add('--steps', type=int, default=20, help='to measure (default 20)')
  add('--compare', metavar='A,B', help='attention implementations, in turns')
  add('--breakdown', action='store_true', help='time by part of the model')


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures and prints.

  Raises:
    InputError: for what cannot be measured.
  """
  if arguments.steps < 1:
    raise InputError(f'--steps must be at least 1, found {arguments.steps}')
  configs = _configs(arguments, rest)
  from txl_jax.benchmark.measure import measure_training

  for line in measure_training(
    configs, arguments.steps, breakdown=arguments.breakdown, say=_say
  ):
    print(json.dumps({'config': arguments.config, **line}), flush=True)
  return 0


def _configs(arguments: argparse.Namespace, rest: list[str]) -> list[Config]:
  """One configuration for each implementation that is compared."""
  if arguments.batch is not None:
    rest = [*rest, f'--config.train.batch_size={arguments.batch}']
  variants = [[]]
  if arguments.compare is not None:
    field = '--config.model.attention_implementation'
    variants = [[f'{field}={name}'] for name in arguments.compare.split(',')]
  return [
    read_config(arguments.config, [*rest, *variant]) for variant in variants
  ]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
