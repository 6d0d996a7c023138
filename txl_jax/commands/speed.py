"""`txl speed`."""

import argparse

from txl_jax.commands.arguments import (
  Commands,
  add_command,
  add_config,
  read_config,
  say,
)
from txl_jax.commands.output import add_out, check_out, numbers, write_out
from txl_jax.errors import InputError

EXAMPLES = """examples:
  txl speed --config=experiments/enwik8_large.py \\
    --vanilla=experiments/vanilla.py:enwik8_64 --out=plots/speed \\
    --config.model.dtype=bfloat16
  txl speed --config=experiments/quickstart.py --lengths=64,128,256 \\
    --out=plots/speed

No text and no training is needed: ids and weights are random. The model of
--config reads segments of config.eval.segment_length with as much memory; that
of --vanilla reads a window of as many tokens for each single token. Settings
of the command line (--config.model.dtype) are those of both.
"""
FIELDS_OF_BOTH = ('--config.model.dtype', '--config.model.unroll')


def add_speed(commands: Commands) -> None:
  """Declares `txl speed`."""
  parser = add_command(
    commands,
    'speed',
    speed,
    'Speed of evaluation against a model that recomputes its context.',
    epilog=EXAMPLES,
  )
  add_config(parser)
  add = parser.add_argument
  add(
    '--vanilla',
    metavar='FILE.py',
    help='experiment of the other model (default: the same, without memory)',
  )
  add(
    '--lengths',
    default='800,1800,2800,3800',
    metavar='L,L,...',
    help='attention lengths (default 800,1800,2800,3800)',
  )
  add('--batch', type=int, default=1, help='rows of both (default 1)')
  add('--steps', type=int, default=10, help='calls to measure (default 10)')
  add_out(parser)


def speed(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures evaluation with memory and with recomputed context."""
  out = check_out(arguments)
  lengths = sorted(set(numbers(arguments.lengths, '--lengths')))
  if lengths[0] < 1:
    raise InputError(f'--lengths must be at least 1, found {lengths[0]}')
  for name in ('batch', 'steps'):
    if getattr(arguments, name) < 1:
      found = getattr(arguments, name)
      raise InputError(f'--{name} must be at least 1, found {found}')
  config = read_config(arguments.config, rest)
  vanilla = config
  if arguments.vanilla is not None:
    shared = [word for word in rest if word.startswith(FIELDS_OF_BOTH)]
    vanilla = read_config(arguments.vanilla, shared)
  from txl_jax.benchmark.lines import machine
  from txl_jax.benchmark.slowdown import measure_slowdown
  from txl_jax.parallel.compiled import keep_compiled
  from txl_jax.parallel.mesh import make_mesh
  from txl_jax.report.curves import speed_figure

  keep_compiled()
  found = list(
    measure_slowdown(
      *(config, vanilla.model, lengths),
      batch_size=arguments.batch,
      steps=arguments.steps,
      say=say,
    )
  )
  facts = {
    'config': arguments.config,
    'vanilla': arguments.vanilla or arguments.config,
    'batch': arguments.batch,
    'segment': config.eval.segment_length,
    'dtype': config.model.dtype,
    **machine(make_mesh()),
    'lengths': found,
  }
  write_out(out, facts, {'': speed_figure(found)})
  return 0
