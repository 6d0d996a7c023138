"""`txl eval`."""

import argparse
import dataclasses
import json

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  add_workdir,
  say,
)


def add_eval(commands: Commands) -> None:
  """Declares `txl eval`."""
  parser = add_command(
    commands,
    'eval',
    evaluate,
    'Score a split; the last line is JSON.',
    epilog='Change the settings with --config.eval.FIELD=VALUE.',
  )
  add_workdir(parser)
  parser.add_argument(
    '--split', default='test', choices=('train', 'validation', 'test')
  )
  add_checkpoint(parser)


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Scores a split of the text that a run was trained on."""
  from txl_jax.training.run import load_run

  run = load_run(arguments.workdir, say, rest, arguments.checkpoint)
  result = run.evaluate(arguments.split)
  print(
    json.dumps(
      {
        'split': arguments.split,
        **result.to_json(),
        'step': run.step,
        **dataclasses.asdict(run.config.eval),
      }
    )
  )
  return 0
