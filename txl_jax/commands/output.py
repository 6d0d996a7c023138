"""What an analysis leaves behind: JSON, and plots as PNG and SVG."""

import argparse
import json
import pathlib

from txl_jax.commands.arguments import say
from txl_jax.commands.files import check_file, write_file
from txl_jax.errors import InputError


def add_out(parser: argparse.ArgumentParser) -> None:
  """Declares --out."""
  parser.add_argument(
    '--out',
    required=True,
    metavar='NAME',
    help='writes NAME.json, NAME.png and NAME.svg',
  )


def check_out(arguments: argparse.Namespace) -> pathlib.Path:
  """The path that names of files begin with, its folder made."""
  return check_file(arguments.out, '--out')


def write_out(
  out: pathlib.Path, facts: dict, pictures: dict[str, dict[str, bytes]]
) -> None:
  """Writes the files of an analysis, and says where they lie.

  Args:
    out: from `check_out`.
    facts: what was found, and how.
    pictures: by what is added to the name, from report/figures.py.
  """
  text = json.dumps(facts, indent=2) + '\n'
  files = {'.json': text.encode()}
  for name, picture in pictures.items():
    files |= {name + suffix: content for suffix, content in picture.items()}
  for suffix, content in files.items():
    path = out.with_name(out.name + suffix)
    write_file(path, lambda file, content=content: file.write(content))
    say(f'Wrote {path}')


def numbers(text: str, option: str) -> list[int]:
  """A list of whole numbers, such as `0,128,512`.

  Raises:
    InputError: for anything else.
  """
  try:
    return [int(part) for part in text.split(',')]
  except ValueError as error:
    raise InputError(
      f'{option} must be whole numbers with commas between, found {text!r}'
    ) from error
