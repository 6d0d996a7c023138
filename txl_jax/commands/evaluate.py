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
from txl_jax.commands.files import check_file, write_file

EXAMPLES = """examples:
  txl eval --workdir=runs/mine
  txl eval --workdir=runs/mine --split=validation --losses=losses.npy
  txl eval --workdir=runs/mine --config.eval.batch_size=1
  txl eval --workdir=runs/mine --config.eval.warmup_tokens=2000

Change the settings with --config.eval.FIELD=VALUE. One row is exact: each token
is scored in the context of all text before it, as far as the memory reaches.
Several rows are faster; each begins with an empty memory, or with
warmup_tokens of the text before it.
"""


def add_eval(commands: Commands) -> None:
  """Declares `txl eval`."""
  parser = add_command(
    commands,
    'eval',
    evaluate,
    'Score a split; the last line is JSON.',
    epilog=EXAMPLES,
  )
  add_workdir(parser)
  parser.add_argument(
    '--split', default='test', choices=('train', 'validation', 'test')
  )
  parser.add_argument(
    '--losses',
    metavar='FILE.npy',
    help='write the loss of each token but the first: natural log, float32',
  )
  add_checkpoint(parser)


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Scores a split of the text that a run was trained on."""
  path = None
  if arguments.losses is not None:
    path = check_file(arguments.losses, '--losses', '.npy')
  import numpy as np

  from txl_jax.evaluation.perplexity import settings_line, summed
  from txl_jax.training.run import load_run

  run = load_run(arguments.workdir, say, rest, arguments.checkpoint)
  tokens, measure = run.tokens(arguments.split), run.vocabulary.measure
  losses = run.token_losses(tokens)
  if path is not None:
    write_file(path, lambda file: np.save(file, losses))
  result = summed(losses, tokens, run.vocabulary)
  say(
    f'{arguments.split}: {measure} {getattr(result, measure):.4f}, loss '
    f'{result.nll:.4f}; {result.tokens:,} tokens, '
    f'{settings_line(run.config.eval)}'
  )
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
