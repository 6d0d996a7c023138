"""Reading prompts, each row with its own length and its own memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.generation import caches
from txl_jax.model.functional import check_tokens
from txl_jax.model.memory import AnyMemory
from txl_jax.model.transformer import TransformerXL

# Columns of padded prompts, at least.
FEWEST = 16


def check_prompt(
  config: ModelConfig, prompt_BT: jax.Array, lengths_B: jax.Array | None
) -> None:
  """Raises an InputError for a prompt that cannot be continued."""
  if config.absolute_positions:
    raise InputError(
      f'a model with position_encoding {config.position_encoding!r} cannot '
      'generate: token by token, all would have the last absolute position'
    )
  n_rows, longest = prompt_BT.shape
  if longest < 1:
    raise InputError('prompt_BT must have at least 1 token a row, found none')
  if lengths_B is None:
    check_tokens(config, prompt_BT, 'prompt_BT')
  elif not isinstance(lengths_B, jax.core.Tracer):
    _check_lengths(np.asarray(lengths_B), n_rows, longest)
    if not isinstance(prompt_BT, jax.core.Tracer):
      check_tokens(config, _without_padding(prompt_BT, lengths_B), 'prompt_BT')


def _check_lengths(lengths_B: np.ndarray, n_rows: int, longest: int) -> None:
  inside = (1 <= lengths_B) & (lengths_B <= longest)
  if lengths_B.shape != (n_rows,) or not inside.all():
    raise InputError(
      f'prompt_lengths_B must be {n_rows} numbers from 1 to {longest}, found '
      f'{lengths_B.tolist()}'
    )


def _without_padding(prompt_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
  """The prompts with token 0 in the place of padding."""
  inside_BT = jnp.arange(prompt_BT.shape[1]) < jnp.asarray(lengths_B)[:, None]
  return jnp.where(inside_BT, prompt_BT, 0)


def read_prompt(
  config: ModelConfig,
  params: dict,
  prompt_BT: jax.Array,
  lengths_B: jax.Array | None,
  memory: AnyMemory,
  boundary: int | None,
) -> tuple[jax.Array, AnyMemory]:
  """Reads prompts, as if each were alone.

  Padding stands behind a prompt, where no token of the prompt sees it. It is
  then cut off, and what stays moves to the end of the memory.

  Args:
    config: the model.
    params: its parameters.
    prompt_BT: token ids, each row from column 0 on.
    lengths_B: tokens of each row, at least 0; None = all.
    memory: of the text before; either kind.
    boundary: the id that begins a document.

  Returns:
    The hidden state [B, D] of each row's last token, and the memory after it,
    of the kind given. A row of length 0 keeps its memory; its hidden state
    means nothing.
  """
  if lengths_B is None:
    hidden_BTD, memory = TransformerXL(config).apply(
      {'params': params}, prompt_BT, memory, begins(prompt_BT, boundary)
    )
    return hidden_BTD[:, -1], memory
  longest = prompt_BT.shape[1]
  prompt_BT = _without_padding(prompt_BT, lengths_B)
  starts_BT = begins(prompt_BT, boundary)
  if starts_BT is not None:
    starts_BT &= jnp.arange(longest) < lengths_B[:, None]
  cache = caches.slide(memory, longest)
  hidden_BTD, cache = caches.read_cached(
    config, params, prompt_BT, cache, starts_BT
  )
  # No document begins in the padding, so it has counted as text.
  valid_B = cache.valid_B - (longest - lengths_B)
  cache = caches.compact(cache.replace(valid_B=valid_B), lengths_B)
  last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
  hidden_B1D = jnp.take_along_axis(hidden_BTD, last_B11, axis=1)
  return hidden_B1D[:, 0], caches.remembered(config, cache)


def begins(tokens_BT: jax.Array, boundary: int | None) -> jax.Array | None:
  """Where documents begin."""
  return None if boundary is None else tokens_BT == boundary


def read_pieces(
  config: ModelConfig,
  params: dict,
  texts: list[np.ndarray],
  memory: AnyMemory,
  boundary: int | None,
) -> tuple[jax.Array, jax.Array, AnyMemory]:
  """Reads all but the last piece of each text.

  A long text is read in pieces as long as the memory, so that its cost grows
  linearly. The texts end together, so that each is cut as if it were alone, and
  pieces are padded, so that few lengths need programs of their own.

  Returns:
    The last pieces [B, T], their lengths [B], and the memory before them.

  Raises:
    InputError: for a text without tokens, or one outside the vocabulary.
  """
  longest, size = max(map(len, texts)), max(memory.length, 1)
  width = min(size, max(FEWEST, 1 << (longest - 1).bit_length()))
  for i in reversed(range(-(-longest // size))):
    ends = [max(len(text) - i * size, 0) for text in texts]
    pieces = [text[max(end - size, 0) : end] for text, end in zip(texts, ends)]
    lengths_B = np.array([len(piece) for piece in pieces])
    padded_BT = np.zeros((len(texts), width), np.int32)
    for row, piece in zip(padded_BT, pieces):
      row[: len(piece)] = piece
    check_tokens(config, padded_BT, 'prompt_BT')
    if i:
      memory = _remember(config, params, padded_BT, lengths_B, memory, boundary)
  check_prompt(config, padded_BT, lengths_B)
  return padded_BT, lengths_B, memory


@functools.partial(jax.jit, static_argnums=(0, 5))
def _remember(*arguments: Any) -> AnyMemory:
  """The memory after `read_prompt`, without the work for hidden states."""
  return read_prompt(*arguments)[1]
