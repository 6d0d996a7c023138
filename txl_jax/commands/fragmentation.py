"""`txl fragmentation`."""

import argparse
import dataclasses
import math

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  say,
)
from txl_jax.commands.models import (
  Subject,
  add_text,
  load_subject,
  tokens_of,
)
from txl_jax.commands.output import add_out, check_out, write_out
from txl_jax.errors import InputError

EXAMPLES = """examples:
  txl fragmentation runs/with_memory runs/without --out=plots/fragmentation
  txl fragmentation runs/without --segment=512 --out=plots/fragmentation

Each run is evaluated with its own memory (config.eval.memory_length), in
segments of equal length. A model without memory does not see across the
beginning of a segment and is worst there. Change the settings of all runs with
--config.eval.FIELD=VALUE.
"""


def add_fragmentation(commands: Commands) -> None:
  """Declares `txl fragmentation`."""
  parser = add_command(
    commands,
    'fragmentation',
    fragmentation,
    'Loss by place in the segment, of models with and without memory.',
    epilog=EXAMPLES,
  )
  parser.add_argument(
    'workdirs', nargs='+', metavar='WORKDIR', help='folders of runs'
  )
  add_checkpoint(parser)
  add_text(parser)
  parser.add_argument(
    '--segment', type=int, help='tokens (default: of the first run)'
  )
  add_out(parser)


def fragmentation(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures the loss at each place of a segment."""
  out = check_out(arguments)
  if arguments.segment is not None and arguments.segment < 1:
    raise InputError(f'--segment must be at least 1, found {arguments.segment}')
  from txl_jax.report.curves import fragmentation_figure

  subjects = [
    load_subject(path, None, rest, arguments.checkpoint)
    for path in arguments.workdirs
  ]
  measure = subjects[0].vocabulary.measure
  if any(subject.vocabulary.measure != measure for subject in subjects):
    raise InputError('runs on words and runs on characters do not compare')
  length = arguments.segment or subjects[0].config.eval.segment_length
  curves, facts = {}, {'segment_length': length, 'models': []}
  for subject in subjects:
    curve, line = _measured(subject, length, arguments)
    curves[subject.name] = curve
    facts['models'].append(line)
  unit = 'bits per token' if measure == 'bpc' else 'nats per token'
  facts['unit'] = unit
  write_out(out, facts, {'': fragmentation_figure(curves, unit)})
  return 0


def _measured(
  subject: Subject, length: int, arguments: argparse.Namespace
) -> tuple[tuple, dict]:
  """The curve of a model, and what is written of it."""
  from txl_jax.evaluation.fragmentation import grouped, loss_by_place
  from txl_jax.evaluation.perplexity import settings_line, token_losses
  from txl_jax.parallel.mesh import make_mesh

  settings = dataclasses.replace(
    subject.config.eval, segment_length=length, warmup_tokens=0, stride=None
  )
  tokens = tokens_of(subject, arguments)
  losses = token_losses(
    *(subject.config.model, subject.params, tokens, subject.vocabulary),
    *(settings, make_mesh()),
  )
  nats = math.log(2) if subject.vocabulary.measure == 'bpc' else 1.0
  mean_T, count_T = loss_by_place(losses / nats, length, settings.batch_size)
  place, loss = grouped(mean_T, count_T)
  say(
    f'{subject.name}: first place {mean_T[0]:.3f}, last quarter '
    f'{mean_T[-length // 4 :].mean():.3f} ({settings_line(settings)})'
  )
  line = {
    'name': subject.name,
    'settings': dataclasses.asdict(settings),
    'loss': [None if math.isnan(x) else x for x in mean_T.tolist()],
    'count': count_T.tolist(),
  }
  return (place, loss), line
