"""`txl convert`."""

import argparse
import pathlib

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  no_more,
  say,
)
from txl_jax.errors import InputError

DESCRIPTION = """Read a model of any implementation, and write it in any format.

PATH is a folder or a file: a run of `txl train`, our own export, model.pt of
the paper's PyTorch code, model.ckpt of its TensorFlow code, checkpoint_best.pt
of NVIDIA's, or a folder of Hugging Face's TransfoXLLMHeadModel. Nothing in a
file is run. An export keeps the losses of a few fixed tokens; --check computes
them again.
"""
EXAMPLES = """examples:
  txl convert --from=transfo-xl-wt103 --to=models/wt103
  txl convert --from=model.pt --to=models/mine --vocabulary=cache.pt \\
    --config.model.memory_length=160 --config.model.attention_span=none
  txl convert --from=runs/mine --to=official --format=official
  txl convert --check=models/wt103

What a checkpoint does not tell, and what it tells but should be otherwise, is
set with --config.model.FIELD=VALUE. docs/checkpoints.md has all formats.
"""
FORMATS = ('export', 'official', 'nvidia', 'hugging_face')


def add_convert(commands: Commands) -> None:
  """Declares `txl convert`."""
  parser = add_command(
    commands,
    'convert',
    run,
    "Read and write other implementations' checkpoints.",
    description=DESCRIPTION,
    epilog=EXAMPLES,
  )
  add = parser.add_argument
  add('--from', dest='source', metavar='PATH', help='what is read')
  add('--to', metavar='DIR', help='what is written: a new or empty folder')
  add('--format', choices=FORMATS, default='export', help='of DIR (our export)')
  add('--vocabulary', metavar='FILE', help='if it does not lie beside PATH')
  add('--check', metavar='DIR', help='of an export, instead of --from and --to')
  add_checkpoint(parser)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Converts, or checks.

  Raises:
    InputError: for what cannot be converted, or has changed.
  """
  if arguments.check is not None:
    if arguments.source is not None or arguments.to is not None:
      raise InputError('--check stands alone, without --from and --to')
    no_more(rest)
    return _check(arguments.check)
  for name, value in (('from', arguments.source), ('to', arguments.to)):
    if value is None:
      raise InputError(f'--{name} is missing')
  target = pathlib.Path(arguments.to).expanduser()
  if target.exists() and not (target.is_dir() and not [*target.iterdir()]):
    raise InputError(f'--to: {target} is not a new or empty folder')
  _convert(arguments, rest, target)
  return 0


def _check(directory: str) -> int:
  from txl_jax.interop.verification import check_export

  say(f'Scoring the fixed tokens of {directory}')
  difference = check_export(directory)
  say(f'{directory} is what it was: losses differ by {difference:.1e} at most')
  return 0


def _convert(
  arguments: argparse.Namespace, rest: list[str], target: pathlib.Path
) -> None:
  import jax

  from txl_jax.interop.checkpoints import write_checkpoint
  from txl_jax.interop.verification import write_verification

  say(f'Reading {arguments.source}')
  found = _read(arguments, rest)
  config, vocabulary = found.config, found.vocabulary
  n_parameters = sum(leaf.size for leaf in jax.tree.leaves(found.params))
  say(
    f'Found a model in the format {found.form}: {config.n_layers} layers, '
    f'{n_parameters:,} parameters, {config.vocab_size:,} tokens, '
    + ('no vocabulary' if vocabulary is None else 'with vocabulary')
    + ('' if found.step is None else f', step {found.step:,}')
  )
  say(f'Writing {target} in the format {arguments.format}')
  write_checkpoint(arguments.format, target, found)
  if arguments.format == 'export':
    say('Scoring fixed tokens, for `txl convert --check`')
    losses = write_verification(target, config, found.params)
    say(f'Their mean loss is {losses.mean():.4f} nats')
  say(f'Done: {target}')


def _read(arguments: argparse.Namespace, rest: list[str]):
  """The model: of a run, or of a checkpoint."""
  from txl_jax.interop.checkpoints import read_checkpoint
  from txl_jax.interop.imported import Imported, refitted
  from txl_jax.overrides import model_fields

  given = model_fields(rest)
  if (pathlib.Path(arguments.source) / 'run.json').is_file():
    if arguments.vocabulary is not None:
      raise InputError('--vocabulary: a run of `txl train` has its own')
    from txl_jax.training.run import load_run

    run = load_run(arguments.source, say, None, arguments.checkpoint)
    model = refitted(run.config.model, run.params, given)
    return Imported('run', model, run.params, run.vocabulary, step=run.step)
  return read_checkpoint(arguments.source, given, arguments.vocabulary)
