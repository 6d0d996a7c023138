"""`txl attention`."""

import argparse
from typing import TYPE_CHECKING

from txl_jax.commands.arguments import Commands, add_command, no_more
from txl_jax.commands.files import write_file
from txl_jax.commands.models import (
  Subject,
  add_model,
  add_text,
  load_subject,
  tokens_of,
)
from txl_jax.commands.output import add_out, check_out, write_out
from txl_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

  from txl_jax.evaluation.attention_maps import AttentionMaps

EXAMPLES = """examples:
  txl attention --workdir=runs/mine --out=plots/attention
  txl attention --workdir=runs/mine --text=FILE --keys=640 --queries=200 \\
    --out=plots/attention

Three plots: NAME-average (each head's attention by distance, averaged over the
last tokens of the text), NAME-terms (the four terms of the scores), and
NAME-example (the attention of the last token). NAME.npz has the numbers.
"""
NEAR = (1, 10, 100)  # how much of the attention stays so near


def add_attention(commands: Commands) -> None:
  """Declares `txl attention`."""
  parser = add_command(
    commands,
    'attention',
    attention,
    'Attention maps by head and layer, and the four terms behind them.',
    epilog=EXAMPLES,
  )
  add_model(parser)
  add_text(parser)
  add = parser.add_argument
  add('--keys', type=int, default=200, help='a token sees (default 200)')
  add('--queries', type=int, default=200, help='averaged (default 200)')
  add('--shown', type=int, default=48, help='tokens of the example')
  add_out(parser)


def attention(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Draws where the heads of a model look."""
  no_more(rest)
  out = check_out(arguments)
  for name in ('keys', 'queries', 'shown'):
    if getattr(arguments, name) < 1:
      found = getattr(arguments, name)
      raise InputError(f'--{name} must be at least 1, found {found}')
  import numpy as np

  from txl_jax.evaluation.attention_maps import attention_maps

  subject = load_subject(
    arguments.workdir, arguments.model, [], arguments.checkpoint
  )
  tokens = tokens_of(subject, arguments)
  # Before the keys of the first query as much text again, to be remembered.
  tokens = tokens[: 2 * arguments.keys + arguments.queries]
  maps = attention_maps(
    *(subject.config.model, subject.params, tokens),
    width=arguments.keys,
    n_queries=arguments.queries,
    boundary=subject.vocabulary.boundary,
    clamp_length=subject.config.eval.clamp_length,
  )
  write_out(
    out,
    _facts(subject, tokens, maps, arguments),
    _pictures(subject, tokens, maps, arguments.shown),
  )
  arrays = out.with_name(out.name + '.npz')
  write_file(arrays, lambda file: np.savez_compressed(file, **maps._asdict()))
  return 0


def _facts(
  subject: Subject,
  tokens: 'np.ndarray',
  maps: 'AttentionMaps',
  arguments: argparse.Namespace,
) -> dict:
  """How far each head looks."""
  import numpy as np

  average_NHW = maps.average_NHW.astype(float)
  distance_W = np.arange(arguments.keys)
  return {
    'model': subject.name,
    'tokens': len(tokens),
    'keys': arguments.keys,
    'queries': arguments.queries,
    'example': subject.vocabulary.decode(tokens[-arguments.keys :]),
    'mean_distance': (average_NHW @ distance_W).tolist(),
    **{
      f'share_of_the_last_{n}': average_NHW[..., :n].sum(axis=-1).tolist()
      for n in NEAR
    },
  }


def _pictures(
  subject: Subject, tokens: 'np.ndarray', maps: 'AttentionMaps', shown: int
) -> dict:
  from txl_jax.report import attention as plots

  shown = min(shown, maps.example_NHW.shape[-1])
  texts = [
    subject.vocabulary.decode([token]) for token in tokens[-shown:].tolist()
  ]
  return {
    '-average': plots.average_figure(maps.average_NHW),
    '-terms': plots.terms_figure(maps.terms_4NHW),
    '-example': plots.example_figure(maps.example_NHW, texts),
  }
