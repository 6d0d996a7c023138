"""Trained models and texts, as the commands that examine them take them."""

import argparse
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from txl_jax.commands.arguments import add_checkpoint, say
from txl_jax.config import Config, EvalConfig
from txl_jax.errors import InputError

if TYPE_CHECKING:
  import numpy as np

  from txl_jax.data.vocabulary import Vocabulary
  from txl_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Subject:
  """A trained model.

  Attributes:
    name: of its folder.
    config: the experiment, or, of an exported model, defaults around it.
    params: its parameters.
    vocabulary: what its token ids mean.
    run: where it was trained; None of an exported model.
  """

  name: str
  config: Config
  params: dict
  vocabulary: 'Vocabulary'
  run: 'Run | None' = None

  def tokens(self, split: str) -> 'np.ndarray':
    """The ids of a split of the corpus that the model was trained on.

    Raises:
      InputError: if it is not known, or not the same any more.
    """
    if self.run is None:
      raise InputError('--model knows no splits, expected --text=FILE too')
    return self.run.tokens(split)


def add_model(parser: argparse.ArgumentParser) -> None:
  """Declares --workdir, --model and --checkpoint."""
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--workdir', help='folder of a run')
  which.add_argument(
    '--model', metavar='FOLDER', help='a model in our export format'
  )
  add_checkpoint(parser)


def add_text(parser: argparse.ArgumentParser) -> None:
  """Declares what is read: --split, --text and --limit."""
  what = parser.add_mutually_exclusive_group()
  what.add_argument(
    '--split',
    default='test',
    choices=('train', 'validation', 'test'),
    help="of the run's corpus (default test)",
  )
  what.add_argument(
    '--text', metavar='FILE', help='a text of your own; - = standard input'
  )
  parser.add_argument(
    '--limit', type=int, metavar='N', help='read the first N tokens of it'
  )


def load_subject(
  workdir: str | None,
  model: str | None,
  overrides: list[str],
  checkpoint: str = 'best',
) -> Subject:
  """Reads a run or an exported model.

  Args:
    workdir: folder of a run.
    model: folder of an exported model, if there is no run. It is evaluated with
      the memory, span and clamping that it has.
    overrides: `--config.eval.FIELD=VALUE` arguments.
    checkpoint: of the run, 'best' or 'last'.

  Raises:
    InputError: for a folder that holds neither, or other arguments.
  """
  from txl_jax.parallel.compiled import keep_compiled

  keep_compiled()
  if workdir is not None:
    from txl_jax.training.run import load_run

    run = load_run(workdir, say, overrides, checkpoint)
    name = pathlib.Path(workdir).resolve().name
    return Subject(name, run.config, run.params, run.vocabulary, run)
  from txl_jax.interop.pretrained import load_pretrained

  sizes, params, vocabulary = load_pretrained(model)
  settings = EvalConfig(
    batch_size=1,
    memory_length=sizes.memory_length,
    attention_span=sizes.attention_span,
    clamp_length=sizes.clamp_length,
  )
  config = _overridden(Config(sizes, eval=settings), overrides)
  return Subject(pathlib.Path(model).resolve().name, config, params, vocabulary)


def _overridden(config: Config, overrides: list[str]) -> Config:
  from txl_jax.conversion import from_config_dict, to_config_dict
  from txl_jax.overrides import apply_overrides

  for argument in overrides:
    if not argument.startswith('--config.eval.'):
      raise InputError(
        f'{argument!r}: of a model only --config.eval.FIELD=VALUE can be '
        'changed'
      )
  return from_config_dict(apply_overrides(to_config_dict(config), overrides))


def read_text(path: str) -> bytes:
  """A file, or the standard input for '-'.

  Raises:
    InputError: if it cannot be read or is empty.
  """
  try:
    text = sys.stdin.buffer.read() if path == '-' else _read(path)
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror}') from error
  if not text:
    raise InputError(f'--text={path} is empty, expected text')
  return text


def _read(path: str) -> bytes:
  return pathlib.Path(path).read_bytes()


def encode_document(subject: Subject, text: bytes) -> 'np.ndarray':
  """The ids of a document, after what begins one.

  Raises:
    InputError: for text that the vocabulary cannot express.
  """
  import numpy as np

  from txl_jax.data.wikitext import to_wikitext

  vocabulary = subject.vocabulary
  try:
    if subject.config.data.corpus in ('wikitext103', 'wikitext2'):
      text = to_wikitext(text.decode())
    ids = vocabulary.encode(text)
  except UnicodeDecodeError as error:
    raise InputError(
      f'the text must be UTF-8, found {error.object[error.start]:#x} at byte '
      f'{error.start}'
    ) from error
  if vocabulary.mark is not None:  # stands before each sentence already
    return ids
  first = vocabulary.encode_prompt('')[:1]
  return np.concatenate([first.astype(ids.dtype), ids])


def tokens_of(subject: Subject, arguments: argparse.Namespace) -> 'np.ndarray':
  """The ids that --split, --text and --limit ask for."""
  if arguments.limit is not None and arguments.limit < 2:
    raise InputError(f'--limit must be at least 2, found {arguments.limit}')
  if arguments.text is None:
    tokens = subject.tokens(arguments.split)
  else:
    tokens = encode_document(subject, read_text(arguments.text))
  return tokens[: arguments.limit]
