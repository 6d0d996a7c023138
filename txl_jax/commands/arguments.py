"""What the commands share: how they are declared, and how they speak."""

import argparse
from collections.abc import Callable

from txl_jax.config import Config
from txl_jax.errors import InputError

Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace, list[str]], int]


def add_command(
  commands: Commands,
  name: str,
  run: Run,
  text: str,
  *,
  description: str | None = None,
  epilog: str = '',
) -> argparse.ArgumentParser:
  """Declares a command.

  Args:
    commands: those of the command line.
    name: of the command.
    run: gets its arguments, and those that are not declared; returns the exit
      code.
    text: one line for `txl --help`.
    description: what heads its own help; None = the same line.
    epilog: what ends its own help.
  """
  parser = commands.add_parser(
    name,
    help=text,
    description=description or text,
    epilog=epilog,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.set_defaults(run=run)
  return parser


def fields_help() -> str:
  """All fields of the configuration, for the help of a command."""
  from txl_jax.overrides import field_names

  return f'Set any field with --config.SECTION.FIELD=VALUE:\n{field_names()}'


def add_config(parser: argparse.ArgumentParser) -> None:
  """Declares --config."""
  parser.add_argument('--config', required=True, help='experiment, FILE.py')


def add_workdir(parser: argparse.ArgumentParser) -> None:
  """Declares --workdir."""
  parser.add_argument('--workdir', required=True, help='folder of the run')


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Declares --checkpoint."""
  parser.add_argument(
    '--checkpoint',
    default='best',
    choices=('best', 'last'),
    help='of the lowest validation loss (default), or the newest',
  )


def read_config(path: str, overrides: list[str]) -> Config:
  """The configuration of an experiment, with fields of the command line.

  Raises:
    InputError: for a file, a field or a value that is not right.
  """
  from txl_jax.conversion import from_config_dict
  from txl_jax.overrides import apply_overrides, load_experiment

  return from_config_dict(apply_overrides(load_experiment(path), overrides))


def no_more(rest: list[str]) -> None:
  """Raises an InputError for arguments that no one has asked for."""
  if rest:
    raise InputError(f'{rest[0]!r} is no argument of this command')


def say(line: str) -> None:
  """Prints a line of progress."""
  import tqdm

  with tqdm.tqdm.external_write_mode():  # the progress bar makes way
    print(line, flush=True)
