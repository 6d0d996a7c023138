"""`txl bench train|eval|generate`: their arguments, and the lines they print.

JSON goes to the standard output, an object a line; what a person watches goes
to the standard error.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator

from txl_jax.commands.arguments import (
  Commands,
  Run,
  add_command,
  add_config,
  fields_help,
  read_config,
)
from txl_jax.config import Config
from txl_jax.errors import InputError

TRAIN = """examples:
  txl bench train --config=experiments/enwik8_base.py \\
    --config.model.dtype=bfloat16
  txl bench train --config=experiments/wt103_large.py --batch=16 --breakdown \\
    --config.model.dtype=bfloat16
  txl bench train --config=experiments/enwik8_base.py --compare=xla,reference
  txl bench train --config=experiments/enwik8_large.py --batch=16 \\
    --config.model.dtype=bfloat16 --devices=1,2,4,8

No text is needed: ids are random, as frequent as words are. --compare sets
config.model.attention_implementation, once for each name. --devices measures
on the first devices, once for each number, with the mesh of config.mesh. The
fields that are printed are explained in docs/performance.md.
"""
EVAL = """examples:
  txl bench eval --config=experiments/enwik8_large.py --batch=16 \\
    --config.model.dtype=bfloat16
  txl bench eval --config=experiments/wt103_large.py --batch=1 --memory=1600

No text and no training is needed: ids and weights are random. The memory is
full before the clock starts. The fields that are printed are explained in
docs/performance.md.
"""
GENERATE = """examples:
  txl bench generate --config=experiments/enwik8_base.py --batch=64 \\
    --config.model.dtype=bfloat16
  txl bench generate --config=experiments/wt103_large.py --memory=1600 \\
    --config.sample.temperature=1 --config.sample.top_p=None

No text and no training is needed: prompts and weights are random. The memory is
full before the clock starts; tokens are drawn as config.sample says. One device
is used. The fields that are printed are explained in docs/performance.md.
"""


def add_bench(commands: Commands) -> None:
  """Declares `txl bench`."""
  text = 'Measure the speed of training, evaluation, generation; prints JSON.'
  parser = commands.add_parser(
    'bench', help=text, description=text, allow_abbrev=False
  )
  kinds = parser.add_subparsers(
    title='what is measured', metavar='WHAT', required=True
  )
  add = _add_kind(kinds, 'train', bench_train, 'a training step', TRAIN)
  add('--steps', type=int, default=20, help='to measure (default 20)')
  add('--batch', type=int, help="rows (default: the experiment's)")
  add('--compare', metavar='A,B', help='attention implementations, in turns')
  add('--devices', metavar='N,N', help='numbers of them (default: all at once)')
  add(
    '--scaling',
    choices=('weak', 'strong'),
    help='with --devices: rows grow with them (weak, default), or stay',
  )
  add = _add_kind(kinds, 'eval', bench_eval, 'evaluation', EVAL)
  add('--steps', type=int, default=20, help='of some segments (default 20)')
  add('--batch', type=int, help='rows (default: config.eval.batch_size)')
  add('--segment', type=int, help='default: config.eval.segment_length')
  add('--memory', type=int, help='default: config.eval.memory_length')
  add = _add_kind(kinds, 'generate', bench_generate, 'generation', GENERATE)
  add('--steps', type=int, default=20, help='blocks of tokens (default 20)')
  add('--batch', type=int, default=1, help='texts at once (default 1)')
  add('--memory', type=int, help='default: config.eval.memory_length')


def _add_kind(
  kinds: Commands, name: str, run: Run, what: str, examples: str
) -> Callable[..., argparse.Action]:
  """Declares what is measured; returns what adds further options."""
  parser = add_command(
    kinds,
    name,
    run,
    f'Measure the speed of {what}.',
    description=f'Measure the speed of {what}; prints JSON.',
    epilog=f'{examples}\n{fields_help()}',
  )
  add_config(parser)
  add = parser.add_argument
  add('--breakdown', action='store_true', help='time by part of the model')
  return add


def bench_train(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures training steps.

  Raises:
    InputError: for what cannot be measured.
  """
  _check(arguments, 'steps')
  rest = _with_fields(rest, {'train.batch_size': arguments.batch})
  measured = _compared if arguments.devices is None else _scaled
  for line in measured(arguments, rest):
    _print(arguments, line)
  return 0


def _compared(arguments: argparse.Namespace, rest: list[str]) -> Iterator[dict]:
  """A line for each implementation."""
  if arguments.scaling is not None:
    raise InputError('--scaling needs --devices')
  variants = [[]]
  if arguments.compare is not None:
    field = '--config.model.attention_implementation'
    variants = [[f'{field}={name}'] for name in arguments.compare.split(',')]
  configs = [
    read_config(arguments.config, [*rest, *variant]) for variant in variants
  ]
  from txl_jax.benchmark.measure import measure_training

  return measure_training(
    configs, arguments.steps, breakdown=arguments.breakdown, say=_say
  )


def _scaled(arguments: argparse.Namespace, rest: list[str]) -> Iterator[dict]:
  """A line for each number of devices."""
  if arguments.compare is not None:
    raise InputError('--compare and --devices do not go together')
  counts = _counts(arguments.devices)
  config = read_config(arguments.config, rest)
  from txl_jax.benchmark.scaling import measure_scaling

  return measure_scaling(
    config,
    counts,
    arguments.steps,
    scaling=arguments.scaling or 'weak',
    breakdown=arguments.breakdown,
    say=_say,
  )


def _counts(text: str) -> list[int]:
  """The numbers of --devices.

  Raises:
    InputError: for what is no list of different numbers.
  """
  words = text.split(',')
  if not all(re.fullmatch(r'0*[1-9]\d*', word, re.ASCII) for word in words):
    raise InputError(
      '--devices must be whole numbers of at least 1, such as 1,2,4, found '
      f'{text!r}'
    )
  counts = [int(word) for word in words]
  if len(set(counts)) < len(counts):
    raise InputError(f'--devices must be different numbers, found {text!r}')
  return counts


def bench_eval(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures evaluation.

  Raises:
    InputError: for what cannot be measured.
  """
  _check(arguments, 'steps')
  config = _inference_config(
    arguments,
    rest,
    {
      'eval.batch_size': arguments.batch,
      'eval.segment_length': arguments.segment,
    },
  )
  from txl_jax.benchmark.inference import measure_evaluation

  line = measure_evaluation(
    config, arguments.steps, breakdown=arguments.breakdown, say=_say
  )
  _print(arguments, line)
  return 0


def bench_generate(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures generation.

  Raises:
    InputError: for what cannot be measured.
  """
  _check(arguments, 'steps', 'batch')
  config = _inference_config(arguments, rest, {})
  from txl_jax.benchmark.inference import measure_generation

  line = measure_generation(
    config,
    arguments.batch,
    arguments.steps,
    breakdown=arguments.breakdown,
    say=_say,
  )
  _print(arguments, line)
  return 0


def _check(arguments: argparse.Namespace, *names: str) -> None:
  for name in names:
    if getattr(arguments, name) < 1:
      found = getattr(arguments, name)
      raise InputError(f'--{name} must be at least 1, found {found}')


def _inference_config(
  arguments: argparse.Namespace, rest: list[str], fields: dict
) -> Config:
  fields = {**fields, 'eval.memory_length': arguments.memory}
  return read_config(arguments.config, _with_fields(rest, fields))


def _with_fields(rest: list[str], fields: dict) -> list[str]:
  """The arguments, and those fields of the configuration that are given."""
  given = {name: value for name, value in fields.items() if value is not None}
  return [*rest, *(f'--config.{name}={v}' for name, v in given.items())]


def _print(arguments: argparse.Namespace, line: dict) -> None:
  print(json.dumps({'config': arguments.config, **line}), flush=True)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
