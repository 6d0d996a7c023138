"""`txl sweep`."""

import argparse
import dataclasses

from txl_jax.commands.arguments import Commands, add_command, say
from txl_jax.commands.models import (
  add_model,
  add_text,
  load_subject,
  tokens_of,
)
from txl_jax.commands.output import add_out, check_out, numbers, write_out

EXAMPLES = """examples:
  txl sweep --workdir=runs/mine --memory=0,64,128,256,512 --out=plots/memory
  txl sweep --workdir=runs/mine --memory=150,640 --split=validation \\
    --out=plots/memory --config.eval.batch_size=1

One pass over the text for each length; a model need not be trained anew to
remember more. If config.eval.attention_span is set it becomes memory + 1.
Change the other settings with --config.eval.FIELD=VALUE.
"""


def add_sweep(commands: Commands) -> None:
  """Declares `txl sweep`."""
  parser = add_command(
    commands,
    'sweep',
    sweep_memory,
    'Loss against the length of the memory: table and plot.',
    epilog=EXAMPLES,
  )
  add_model(parser)
  add_text(parser)
  parser.add_argument(
    '--memory',
    default='0,64,128,256,512,1024',
    metavar='M,M,...',
    help='lengths (default 0,64,128,256,512,1024)',
  )
  add_out(parser)


def sweep_memory(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Scores a text once for each length of the memory."""
  out = check_out(arguments)
  lengths = numbers(arguments.memory, '--memory')
  from txl_jax.evaluation.memory_sweep import check_sweep, sweep
  from txl_jax.parallel.mesh import make_mesh
  from txl_jax.report.curves import sweep_figure

  subject = load_subject(
    arguments.workdir, arguments.model, rest, arguments.checkpoint
  )
  model, settings = subject.config.model, subject.config.eval
  check_sweep(model, settings, lengths)
  tokens, vocabulary = tokens_of(subject, arguments), subject.vocabulary
  found = sweep(
    *(model, subject.params, tokens, vocabulary, settings, make_mesh()),
    *(sorted(set(lengths)), say),
  )
  lines = list(found)
  facts = {
    'model': subject.name,
    'measure': vocabulary.measure,
    'trained_with_memory_length': model.memory_length,
    'settings': dataclasses.asdict(settings),
    'lengths': lines,
  }
  picture = sweep_figure(lines, vocabulary.measure, model.memory_length)
  write_out(out, facts, {'': picture})
  return 0
