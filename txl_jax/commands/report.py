"""`txl report`."""

import argparse
import pathlib

from txl_jax.commands.arguments import (
  Commands,
  add_command,
  add_workdir,
  no_more,
)


def add_report(commands: Commands) -> None:
  """Declares `txl report`."""
  parser = add_command(commands, 'report', report, 'Write report.html anew.')
  add_workdir(parser)


def report(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Writes the page of a run."""
  no_more(rest)
  from txl_jax.report.page import write_report

  print(write_report(pathlib.Path(arguments.workdir)))
  return 0
