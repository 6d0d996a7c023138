"""`txl bench train`: its arguments, and the lines it prints.

JSON goes to the standard output, one object for each implementation measured;
what a person watches goes to the standard error.
"""

import argparse
import json
import sys

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


def add_bench(commands: argparse._SubParsersAction, fields: str) -> None:
  """Declares the command.

  Args:
    commands: those of the command line.
    fields: help on the fields of the configuration.
  """
  parser = commands.add_parser(
    'bench',
    help='Measure the speed of training; prints JSON.',
    description='Measure the speed of training; prints a JSON object a line.',
    epilog=f'{EXAMPLES}\n{fields}',
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('what', choices=('train',), help='what is measured: a training step')
  add('--config', required=True, help='experiment, FILE.py')
  add('--batch', type=int, help="rows (default: the experiment's)")
  add('--steps', type=int, default=20, help='to measure (default 20)')
  add('--compare', metavar='A,B', help='attention implementations, in turns')
  add('--breakdown', action='store_true', help='time by part of the model')
  parser.set_defaults(run=run)


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
  from txl_jax.conversion import from_config_dict
  from txl_jax.overrides import apply_overrides, load_experiment

  if arguments.batch is not None:
    rest = [*rest, f'--config.train.batch_size={arguments.batch}']
  variants = [[]]
  if arguments.compare is not None:
    field = '--config.model.attention_implementation'
    variants = [[f'{field}={name}'] for name in arguments.compare.split(',')]
  return [
    from_config_dict(
      apply_overrides(load_experiment(arguments.config), [*rest, *variant])
    )
    for variant in variants
  ]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
