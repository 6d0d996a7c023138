"""`txl score`."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from txl_jax.commands.arguments import Commands, add_command
from txl_jax.commands.files import check_file, write_file
from txl_jax.commands.models import (
  Subject,
  add_model,
  encode_document,
  load_subject,
  read_text,
)
from txl_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

  from txl_jax.evaluation.perplexity import Result

EXAMPLES = """examples:
  txl score --workdir=runs/mine --text=FILE
  txl score --workdir=runs/mine --text=FILE --lines > scores.jsonl
  txl score --model=FOLDER --text=FILE --tokens=tokens.tsv
  echo 'def main():' | txl score --workdir=runs/mine --text=-

The text is read as one document, on one device and in one row, so that each
token is scored in the context of all text before it, as far as the memory of
config.eval reaches. With --lines each line is a document of its own, without
the line's end. Change the settings with --config.eval.FIELD=VALUE.
"""


def add_score(commands: Commands) -> None:
  """Declares `txl score`."""
  parser = add_command(
    commands,
    'score',
    score,
    'Loss of a text of your own; the last line is JSON.',
    description='Loss of a text of your own, in total, by line or by token.',
    epilog=EXAMPLES,
  )
  parser.add_argument(
    '--text', required=True, metavar='FILE', help='- = standard input'
  )
  add_model(parser)
  parser.add_argument(
    '--lines',
    action='store_true',
    help='each line by itself; prints a JSON object for each',
  )
  parser.add_argument(
    '--tokens',
    metavar='FILE.tsv',
    help='write a table: document, token, id, text, loss (natural log)',
  )


def score(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Scores a text under a trained model."""
  table = None
  if arguments.tokens is not None:
    table = check_file(arguments.tokens, '--tokens', '.tsv')
  texts = _texts(arguments)
  # Rows would be documents' worth of text without the text before it.
  overrides = ['--config.eval.batch_size=1', *rest]
  subject = load_subject(
    arguments.workdir, arguments.model, overrides, arguments.checkpoint
  )
  documents = [encode_document(subject, text) for text in texts]
  _check(subject, documents)
  losses = _losses(subject, documents)
  if table is not None:
    rows = _table(subject, documents, losses)
    write_file(table, lambda file: file.write(rows.encode()))
  _print(subject, documents, losses, arguments.lines)
  return 0


def _texts(arguments: argparse.Namespace) -> list[bytes]:
  text = read_text(arguments.text)
  if not arguments.lines:
    return [text]
  return text.removesuffix(b'\n').split(b'\n')


def _check(subject: Subject, documents: list['np.ndarray']) -> None:
  if len(documents) > 1 and subject.config.model.memory_start == 'zeros':
    raise InputError(
      "a model with memory_start 'zeros' knows no documents: leave --lines out"
    )
  if sum(map(len, documents)) < len(documents) + 1:
    raise InputError('the text has no tokens to score')


def _losses(
  subject: Subject, documents: list['np.ndarray']
) -> list['np.ndarray']:
  """Of each token but the first of each document.

  All are read one after the other, as one text in which nothing is seen across
  the beginning of a document.
  """
  import jax
  import numpy as np

  from txl_jax.evaluation.perplexity import token_losses
  from txl_jax.parallel.mesh import make_mesh, replicated

  config = subject.config
  ends = np.cumsum([len(ids) for ids in documents])
  starts = np.zeros(ends[-1], np.bool_)
  begins = ends - [len(ids) for ids in documents]
  starts[begins[begins < ends[-1]]] = True
  mesh = make_mesh(devices=jax.devices()[: config.eval.batch_size])
  losses = token_losses(
    config.model,
    jax.device_put(subject.params, replicated(mesh)),
    np.concatenate(documents),
    subject.vocabulary,
    config.eval,
    mesh,
    starts=starts if config.model.memory_start == 'empty' else None,
  )
  # The loss before a document's first token is that of no text.
  return [
    losses[begin : max(begin, end - 1)] for begin, end in zip(begins, ends)
  ]


def _table(
  subject: Subject, documents: list['np.ndarray'], losses: list['np.ndarray']
) -> str:
  rows = ['document\ttoken\tid\ttext\tloss']
  for i, (ids, loss) in enumerate(zip(documents, losses)):
    for j, (token, nll) in enumerate(zip(ids[1:].tolist(), loss.tolist())):
      text = json.dumps(subject.vocabulary.decode([token]), ensure_ascii=False)
      rows.append(f'{i}\t{j}\t{token}\t{text}\t{nll:.6f}')
  return '\n'.join(rows) + '\n'


def _print(
  subject: Subject,
  documents: list['np.ndarray'],
  losses: list['np.ndarray'],
  by_line: bool,
) -> None:
  from txl_jax.evaluation.perplexity import Result, summed

  results = [
    summed(loss, ids, subject.vocabulary)
    for ids, loss in zip(documents, losses)
  ]
  for i, result in enumerate(results if by_line else ()):
    print(json.dumps({'document': i, **_figures(result)}))
  fields = [field.name for field in dataclasses.fields(Result)]
  total = Result(
    *(sum(getattr(result, name) for result in results) for name in fields)
  )
  line = {'documents': len(results), **_figures(total)}
  print(json.dumps({**line, **dataclasses.asdict(subject.config.eval)}))


def _figures(result: 'Result') -> dict:
  """The sum too: the log-probability of the text is its negative."""
  if not result.tokens:
    return {'nll_sum': 0.0, 'tokens': 0, 'characters': 0}
  return {'nll_sum': result.nll_sum, **result.to_json()}
