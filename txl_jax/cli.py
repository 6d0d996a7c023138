"""The command line: `python -m txl_jax COMMAND`, or `txl COMMAND`.

Commands import what they need when they run, so that `--help` and mistakes are
answered at once.
"""

import argparse
import os
import sys

from txl_jax.errors import InputError, Interrupted, TrainingError


def main(argv: list[str] | None = None) -> int:
  """Runs a command; the exit code is 2 for bad input."""
  arguments, rest = _parser().parse_known_args(argv)
  try:
    return arguments.run(arguments, rest)
  except InputError as error:
    return _fail(error, 2)
  except TrainingError as error:
    return _fail(error, 1)
  except Interrupted as notice:
    return _fail(notice, 77)
  except BrokenPipeError:
    # The reader of our output (`| head`) has gone; stay silent at exit too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except KeyboardInterrupt:
    return _fail('interrupted; run the same command to go on', 130)


def _fail(message: object, code: int) -> int:
  print(f'txl: {message}', file=sys.stderr)
  return code


def _parser() -> argparse.ArgumentParser:
  from txl_jax.commands.attention import add_attention
  from txl_jax.commands.bench import add_bench
  from txl_jax.commands.convert import add_convert
  from txl_jax.commands.evaluate import add_eval
  from txl_jax.commands.fragmentation import add_fragmentation
  from txl_jax.commands.generate import add_generate
  from txl_jax.commands.plan import add_plan
  from txl_jax.commands.recl import add_recl
  from txl_jax.commands.report import add_report
  from txl_jax.commands.score import add_score
  from txl_jax.commands.speed import add_speed
  from txl_jax.commands.sweep import add_sweep
  from txl_jax.commands.train import add_prepare, add_train

  parser = argparse.ArgumentParser(
    prog='txl',
    description='Transformer-XL: train, evaluate, generate, examine, report.',
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(
    title='commands', metavar='COMMAND', required=True
  )
  add_prepare(commands)
  add_train(commands)
  add_eval(commands)
  add_score(commands)
  add_generate(commands)
  add_report(commands)
  add_bench(commands)
  add_plan(commands)
  add_sweep(commands)
  add_recl(commands)
  add_speed(commands)
  add_attention(commands)
  add_fragmentation(commands)
  add_convert(commands)
  return parser
