"""Text in, text out."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import jax
import numpy as np

from txl_jax.config import Config, ModelConfig, SampleConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.data.wikitext import to_wikitext
from txl_jax.errors import InputError
from txl_jax.generation.decode import generate_with_log_probs
from txl_jax.generation.loop import row_keys
from txl_jax.generation.prompts import read_pieces
from txl_jax.generation.sampling import Sampling
from txl_jax.generation.session import Session
from txl_jax.generation.streaming import TextStream, WikiTextStream
from txl_jax.model.functional import project_memory
from txl_jax.model.memory import init_memory

Until = Literal['line', 'document']
# Prompts that are continued together.
ROWS = 16


class Writer:
  """Writes text by turns, as it is drawn, and remembers it.

  It remembers what evaluation remembers, but at least a training segment, so
  that a model trained without memory has a context too.
  """

  def __init__(
    self,
    config: Config,
    params: dict,
    vocabulary: Vocabulary,
    sample: SampleConfig,
    seed: int,
    until: Until | None = None,
  ):
    """Begins a document.

    Args:
      config: the experiment.
      params: trained parameters.
      vocabulary: of the model.
      sample: sampling options.
      seed: of the draws.
      until: what a turn ends with, if that comes before its length.
    """
    self._vocabulary, self._is_wikitext = vocabulary, _is_wikitext(config)
    self._session = Session(
      _model(config),
      params,
      sampling=Sampling.of(sample),
      key=jax.random.key(seed),
      boundary=vocabulary.boundary,
      stop=stop_tokens(vocabulary, until),
    )
    self._stream = TextStream(vocabulary)
    self._begun, self._ends_line = False, True

  def write(self, text: str, length: int | None) -> Iterator[str]:
    """Goes on after a text, in pieces that joined are the whole.

    Args:
      text: may be empty. If something has been written, it begins a new line.
      length: tokens to write, at most; None = no limit.

    Raises:
      InputError: for text that the vocabulary cannot express.
    """
    if text and not self._ends_line:
      text = '\n' + text
    ids = _encode(text, self._vocabulary, self._is_wikitext)
    # Only the first text begins a document.
    ids = ids[self._begun :]
    self._begun = True
    self._stream.skip(ids)
    return self._pieces(self._session.write(ids, length))

  def _pieces(self, pieces: Iterator[np.ndarray]) -> Iterator[str]:
    for new in _shown(pieces, self._stream, self._is_wikitext):
      self._ends_line = new.endswith('\n') if new else self._ends_line
      yield new


def continue_text(
  config: Config,
  params: dict,
  vocabulary: Vocabulary,
  prompt: str,
  sample: SampleConfig,
  seed: int,
) -> str:
  """What the model writes after a prompt that begins a document.

  Args:
    config: the experiment.
    params: trained parameters.
    vocabulary: of the model.
    prompt: may be empty.
    sample: length and sampling options.
    seed: of the draws.
  """
  writer = Writer(config, params, vocabulary, sample, seed)
  return ''.join(writer.write(prompt, sample.length))


@dataclasses.dataclass(frozen=True)
class Continuation:
  """What was written after one of several prompts.

  Attributes:
    prompt: the text before it.
    text: the new text.
    tokens: how many tokens it has.
    log_prob: of all of them together under the model's own distribution
      (temperature 1, no filters), natural log.
  """

  prompt: str
  text: str
  tokens: int
  log_prob: float


def continue_all(
  config: Config,
  params: dict,
  vocabulary: Vocabulary,
  prompts: list[str],
  sample: SampleConfig,
  seed: int,
  until: Until | None = None,
) -> Iterator[Continuation]:
  """Continues prompts, several at once; arguments as of `Writer`."""
  model, is_wikitext = _model(config), _is_wikitext(config)
  texts = [_encode(prompt, vocabulary, is_wikitext) for prompt in prompts]
  keys = row_keys(jax.random.key(seed), len(texts))
  for i in range(0, len(texts), ROWS):
    rows = slice(i, i + ROWS)
    memory = init_memory(model, len(texts[rows]))
    memory = project_memory(model, params, memory)
    prompt_BT, lengths_B, memory = read_pieces(
      model, params, texts[rows], memory, vocabulary.boundary
    )
    result = generate_with_log_probs(
      *(model, params, prompt_BT, memory),
      length=sample.length,
      key=keys[rows],
      prompt_lengths_B=lengths_B,
      boundary=vocabulary.boundary,
      stop=stop_tokens(vocabulary, until),
      **dataclasses.asdict(Sampling.of(sample)),
    )
    for row, n in enumerate(result.lengths_B.tolist()):
      stream = TextStream(vocabulary)
      stream.skip(texts[i + row])
      pieces = [np.asarray(result.tokens_BL[row, :n])]
      yield Continuation(
        prompts[i + row],
        ''.join(_shown(pieces, stream, is_wikitext)),
        n,
        float(result.logp_BL[row].sum()),
      )


def stop_tokens(vocabulary: Vocabulary, until: Until | None) -> tuple[int, ...]:
  """The tokens that end a line or a document.

  Raises:
    InputError: if the vocabulary has none.
  """
  stop = ()
  if until == 'document' and vocabulary.boundary is not None:
    stop = (vocabulary.boundary,)
  elif until == 'line':
    ids = range(vocabulary.size)
    stop = tuple(i for i in ids if '\n' in vocabulary.decode([i]))
  if until and not stop:
    raise InputError(f'no token of the vocabulary ends a {until}')
  return stop


def _model(config: Config) -> ModelConfig:
  """The model with the memory that it writes with."""
  length = max(config.eval.memory_length, config.train.segment_length)
  return dataclasses.replace(
    config.model,
    memory_length=length,
    attention_span=config.eval.attention_span,
    clamp_length=config.eval.clamp_length,
  )


def _is_wikitext(config: Config) -> bool:
  return config.data.corpus in ('wikitext103', 'wikitext2')


def _encode(text: str, vocabulary: Vocabulary, is_wikitext: bool) -> np.ndarray:
  """The ids of a text that begins a document, in the form of the corpus."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f'the prompt must be UTF-8, found {text[error.start]!r} at character '
      f'{error.start}'
    ) from error
  text = to_wikitext(text) if is_wikitext else text
  return vocabulary.encode_prompt(text).astype(np.int32)


def _shown(
  pieces: Iterable[np.ndarray], stream: TextStream, is_wikitext: bool
) -> Iterator[str]:
  """The text of pieces of ids, as people write it."""
  joined = WikiTextStream() if is_wikitext else None
  for ids in pieces:
    new = stream.push(ids)
    yield joined.push(new) if joined else new
  new = stream.finish()
  yield joined.push(new) + joined.finish() if joined else new
