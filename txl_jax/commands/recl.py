"""`txl recl`."""

import argparse
from typing import TYPE_CHECKING

from txl_jax.commands.arguments import (
  Commands,
  add_checkpoint,
  add_command,
  no_more,
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

if TYPE_CHECKING:
  import numpy as np

EXAMPLES = """examples:
  txl recl runs/with_memory runs/without --out=plots/recl
  txl recl runs/a runs/b runs/c --step=50 --longest=800 --positions=5000 \\
    --out=plots/recl

Give runs of about equally many parameters: they are compared with the best of
them. Each of the sampled tokens is scored once for each length of context, in a
fresh window, so that exactly so many tokens are seen: time grows with positions
x longest^2 / step. docs/analyses.md has the definition.
"""
SHARES = (0.1, 0.5, 1.0)  # those of the paper


def add_recl(commands: Commands) -> None:
  """Declares `txl recl`."""
  parser = add_command(
    commands,
    'recl',
    recl,
    'Relative effective context length of a group of models.',
    epilog=EXAMPLES,
  )
  add = parser.add_argument
  add('workdirs', nargs='+', metavar='WORKDIR', help='folders of runs')
  add_checkpoint(parser)
  add_text(parser)
  add('--step', type=int, default=100, help='growth of the context')
  add('--longest', type=int, default=1000, help='context (default 1000)')
  add('--positions', type=int, default=2000, help='tokens (default 2000)')
  add('--batch', type=int, default=16, help='windows at once (default 16)')
  add_out(parser)


def recl(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Measures what a group of models makes of more and more context."""
  no_more(rest)
  out = check_out(arguments)
  _check(arguments)
  from txl_jax.evaluation.effective_context import (
    effective_context,
    sampled_positions,
  )
  from txl_jax.parallel.mesh import check_rows, make_mesh
  from txl_jax.report.effective_context import effective_context_figure

  check_rows(make_mesh(), arguments.batch, '--batch')
  subjects = [
    load_subject(path, None, [], arguments.checkpoint)
    for path in arguments.workdirs
  ]
  tokens = _same_text(subjects, arguments)
  contexts = list(range(arguments.step, arguments.longest + 1, arguments.step))
  positions = sampled_positions(len(tokens), contexts[-1], arguments.positions)
  losses_ICP = _losses(subjects, tokens, positions, contexts, arguments.batch)
  found = [effective_context(losses_ICP, contexts, share) for share in SHARES]
  names = [subject.name for subject in subjects]
  _say_table(names, found)
  facts = {
    'models': names,
    'contexts': contexts,
    'positions': len(positions),
    'losses': losses_ICP.mean(axis=2, dtype=float).tolist(),
    'results': [result.to_json() for result in found],
  }
  picture = effective_context_figure(names, contexts, losses_ICP, found)
  write_out(out, facts, {'': picture})
  return 0


def _check(arguments: argparse.Namespace) -> None:
  for name in ('step', 'positions', 'batch'):
    if getattr(arguments, name) < 1:
      found = getattr(arguments, name)
      raise InputError(f'--{name} must be at least 1, found {found}')
  if arguments.longest < 2 * arguments.step:
    raise InputError(
      f'--longest must be at least two steps ({2 * arguments.step}), found '
      f'{arguments.longest}'
    )


def _same_text(
  subjects: list[Subject], arguments: argparse.Namespace
) -> 'np.ndarray':
  """The text, which must be the same to all models."""
  import numpy as np

  first, *others = (tokens_of(subject, arguments) for subject in subjects)
  for subject, tokens in zip(subjects[1:], others):
    if not np.array_equal(first, tokens):
      raise InputError(
        f'{subject.name} reads other tokens than {subjects[0].name}: a group '
        'needs one text and one vocabulary'
      )
  longest = arguments.longest // arguments.step * arguments.step
  if len(first) <= longest:
    raise InputError(
      f'the text has {len(first):,} tokens, expected more than --longest '
      f'({longest:,})'
    )
  return first


def _losses(
  subjects: list[Subject],
  tokens: 'np.ndarray',
  positions: 'np.ndarray',
  contexts: list[int],
  batch_size: int,
) -> 'np.ndarray':
  """Of each model, given each context, at each position [I, C, P]."""
  import numpy as np

  from txl_jax.evaluation.windows import window_losses, window_model
  from txl_jax.parallel.mesh import make_mesh

  found = []
  for subject in subjects:
    clamp_length = subject.config.eval.clamp_length
    model = window_model(subject.config.model, clamp_length)
    rows = []
    for context in contexts:
      rows.append(
        window_losses(
          *(model, subject.params, tokens, positions, context),
          boundary=subject.vocabulary.boundary,
          batch_size=batch_size,
          mesh=make_mesh(),
        )
      )
      say(f'{subject.name}: context {context:,}, loss {rows[-1].mean():.4f}')
    found.append(rows)
  return np.array(found)


def _say_table(names: list[str], found: list) -> None:
  width = max(len('r'), *map(len, names))
  shares = ''.join(f'{f"r = {result.share:g}":>12}' for result in found)
  say(f'{"":<{width}}{shares}')
  for i, name in enumerate(names):
    cells = ''
    for result in found:
      more = '' if result.bounded_I[i] else '>= '
      cells += f'{f"{more}{result.lengths_I[i]:,}":>12}'
    say(f'{name:<{width}}{cells}')
