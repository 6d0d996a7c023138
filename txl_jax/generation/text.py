"""Text in, text out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.config import Config, SampleConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.data.wikitext import from_wikitext, to_wikitext
from txl_jax.generation.decode import generate
from txl_jax.model.functional import log_probs, project_memory
from txl_jax.model.memory import init_memory


def continue_text(
  config: Config,
  params: dict,
  vocabulary: Vocabulary,
  prompt: str,
  sample: SampleConfig,
  seed: int,
) -> str:
  """What the model writes after a prompt that begins a document.

  It remembers what evaluation remembers, but at least a training segment, so
  that a model trained without memory has a context too.

  Args:
    config: the experiment.
    params: trained parameters.
    vocabulary: of the model.
    prompt: may be empty.
    sample: length and sampling options.
    seed: of the draws.
  """
  length = max(config.eval.memory_length, config.train.segment_length)
  model = dataclasses.replace(
    config.model,
    memory_length=length,
    attention_span=config.eval.attention_span,
    clamp_length=config.eval.clamp_length,
  )
  ids = vocabulary.encode_prompt(_written(prompt, config))
  memory = project_memory(model, params, init_memory(model, 1))
  # A long prompt is read in pieces, so that its cost grows linearly.
  *pieces, last = _pieces(ids.astype(np.int32), length)
  for piece in pieces:
    starts_BT = None
    if vocabulary.boundary is not None:
      starts_BT = jnp.asarray(piece == vocabulary.boundary)[None]
    _, memory = log_probs(
      model, params, piece[None], memory, starts_BT=starts_BT
    )
  tokens_BL, _ = generate(
    model,
    params,
    last[None],
    memory,
    length=sample.length,
    key=jax.random.key(seed),
    temperature=sample.temperature,
    top_k=sample.top_k,
    top_p=sample.top_p,
    boundary=vocabulary.boundary,
  )
  before = vocabulary.decode(ids)
  whole = vocabulary.decode(np.append(ids, tokens_BL[0]))
  return _read(whole[len(before) :], config)


def _written(prompt: str, config: Config) -> str:
  """The prompt in the form of the corpus."""
  return to_wikitext(prompt) if _is_wikitext(config) else prompt


def _read(text: str, config: Config) -> str:
  """The text as people write it."""
  if not _is_wikitext(config):
    return text
  blank = ' ' if text.startswith(' ') else ''
  return blank + from_wikitext(text.removeprefix(' '))


def _is_wikitext(config: Config) -> bool:
  return config.data.corpus in ('wikitext103', 'wikitext2')


def _pieces(ids: np.ndarray, size: int) -> list[np.ndarray]:
  """Pieces of equal size, but for the first, so that few shapes compile."""
  first = len(ids) % size or size
  edges = [0, *range(first, len(ids) + 1, size)]
  return [ids[low:high] for low, high in zip(edges, edges[1:])]
