"""`txl generate`."""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  add_workdir,
  no_more,
  say,
)
from txl_jax.config import SampleConfig
from txl_jax.errors import InputError

if TYPE_CHECKING:
  from txl_jax.generation.text import Writer

EXAMPLES = """examples:
  txl generate --workdir=runs/mine --prompt='Once upon' --length=300
  txl generate --workdir=runs/mine --length=-1
  txl generate --workdir=runs/mine --interactive --until=line
  txl generate --workdir=runs/mine --prompts=FILE > continued.jsonl

Text appears as it is written; Ctrl-C ends it. Time and memory per token stay
the same however long the text is: the model remembers as much as evaluation
does (config.eval.memory_length). What is not given is as in config.sample.
"""
ENDLESS = -1


def add_generate(commands: Commands) -> None:
  """Declares `txl generate`."""
  parser = add_command(
    commands, 'generate', generate, 'Continue a prompt.', epilog=EXAMPLES
  )
  add_workdir(parser)
  add_checkpoint(parser)
  what = parser.add_mutually_exclusive_group()
  what.add_argument('--prompt', default='', help='text that begins a document')
  what.add_argument(
    '--prompts',
    metavar='FILE',
    help='continue each line of a file; prints a JSON object for each',
  )
  what.add_argument(
    '--interactive',
    action='store_true',
    help='take turns: write after each line that you enter, remembering all',
  )
  add = parser.add_argument
  add('--length', type=int, help='tokens to generate; -1 = until interrupted')
  add(
    '--until', choices=('line', 'document'), help='end there, if it is before'
  )
  add('--temperature', type=float, help='0 = always the most likely token')
  add('--top_k', type=int, help='draw from the k most likely tokens')
  add('--top_p', type=float, help='draw from the tokens of this total share')
  add(
    '--min_p',
    type=float,
    help='draw from tokens of this share of the highest',
  )
  add('--seed', type=int, default=0, help='of the draws (default 0)')


def generate(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Continues prompts with the model of a run."""
  no_more(rest)
  _check(arguments)
  prompts = arguments.prompts and _lines(arguments.prompts)
  from txl_jax.generation.text import Writer, continue_all
  from txl_jax.parallel.compiled import keep_compiled
  from txl_jax.training.run import load_run

  keep_compiled()
  run = load_run(arguments.workdir, say, None, arguments.checkpoint)
  sample = _sample(run.config.sample, arguments)
  options = sample, arguments.seed, arguments.until
  if prompts:
    for line in continue_all(
      run.config, run.params, run.vocabulary, prompts, *options
    ):
      print(json.dumps(dataclasses.asdict(line)), flush=True)
    return 0
  writer = Writer(run.config, run.params, run.vocabulary, *options)
  length = None if arguments.length == ENDLESS else sample.length
  try:
    if arguments.interactive:
      _take_turns(writer, length)
    else:
      pieces = writer.write(arguments.prompt, length)
      _show([arguments.prompt], pieces)
  except KeyboardInterrupt:
    print()
  return 0


def _check(arguments: argparse.Namespace) -> None:
  if arguments.length != ENDLESS:
    return
  if arguments.prompts:
    raise InputError('--length=-1 writes one text, not those of --prompts')
  if arguments.interactive and not arguments.until:
    raise InputError('--length=-1 with --interactive needs --until')


def _sample(
  default: SampleConfig, arguments: argparse.Namespace
) -> SampleConfig:
  """The run's options with those that are given."""
  names = ('length', 'temperature', 'top_k', 'top_p', 'min_p')
  given = {name: getattr(arguments, name) for name in names}
  if arguments.length == ENDLESS:
    del given['length']
  changes = {name: v for name, v in given.items() if v is not None}
  return dataclasses.replace(default, **changes)


def _take_turns(writer: 'Writer', length: int | None) -> None:
  """Writes after each line that a person enters, or that a pipe brings."""
  prompt = '> ' if sys.stdin.isatty() else ''
  while True:
    try:
      line = input(prompt)
    except EOFError:
      return
    except UnicodeDecodeError as error:
      raise InputError(f'the input must be UTF-8: {error.reason}') from error
    _show(writer.write(line, length))


def _show(*texts: Iterable[str]) -> None:
  """Prints pieces of text as they come, and ends the line."""
  last = ''
  for piece in itertools.chain(*texts):
    print(piece, end='', flush=True)
    last = piece or last
  if not last.endswith('\n'):
    print(flush=True)


def _lines(path: str) -> list[str]:
  """The lines of a file."""
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise InputError(
      f'{path} must be UTF-8, found {error.object[error.start]:#x} at byte '
      f'{error.start}'
    ) from error
  if not text:
    raise InputError(f'{path} is empty, expected a prompt on each line')
  return text.removesuffix('\n').split('\n')
