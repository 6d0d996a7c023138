"""`txl generate`."""

import argparse
import dataclasses

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  add_workdir,
  no_more,
  say,
)


def add_generate(commands: Commands) -> None:
  """Declares `txl generate`."""
  parser = add_command(commands, 'generate', generate, 'Continue a prompt.')
  add_workdir(parser)
  add_checkpoint(parser)
  add = parser.add_argument
  add('--prompt', default='', help='text that begins a document')
  add('--length', type=int, help='tokens to generate')
  add('--temperature', type=float, help='0 = always the most likely token')
  add('--top_k', type=int, help='draw from the k most likely tokens')
  add('--top_p', type=float, help='draw from the tokens of this total share')
  add('--seed', type=int, default=0, help='of the draws (default 0)')


def generate(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Continues a prompt with the model of a run."""
  no_more(rest)
  from txl_jax.generation.text import continue_text
  from txl_jax.training.run import load_run

  run = load_run(arguments.workdir, say, None, arguments.checkpoint)
  names = ('length', 'temperature', 'top_k', 'top_p')
  given = {name: getattr(arguments, name) for name in names}
  changes = {name: v for name, v in given.items() if v is not None}
  sample = dataclasses.replace(run.config.sample, **changes)
  text = continue_text(
    run.config,
    run.params,
    run.vocabulary,
    arguments.prompt,
    sample,
    arguments.seed,
  )
  print(arguments.prompt + text)
  return 0
