"""Decoding: a prompt, then token after token, with memory."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.generation.caches import remembered
from txl_jax.generation.loop import Rules, advance, begin, row_keys
from txl_jax.generation.prompts import check_prompt
from txl_jax.generation.sampling import Sampling
from txl_jax.model.cache import compute_copy
from txl_jax.model.memory import AnyMemory

# Steps between two compactions of the cache, at most: each reads up to so many
# positions too many, and each compaction copies M.
MOST_STEPS = 64


@flax.struct.dataclass
class Generated:
  """New text.

  Attributes:
    tokens_BL: int32; a row that has stopped repeats the token it stopped at.
    lengths_B: int32, how many of them each row has, with that token.
    logp_BL: log-probability of each under the model's own distribution
      (temperature 1, no filters), natural log; 0 behind a row's end.
    memory: of all tokens of each row but the last: a prompt that goes on begins
      with that one.
  """

  tokens_BL: jax.Array
  lengths_B: jax.Array
  logp_BL: jax.Array
  memory: Any


def generate(
  config: ModelConfig,
  params: dict,
  prompt_BT: jax.Array,
  memory: AnyMemory,
  *,
  length: int,
  key: jax.Array,
  prompt_lengths_B: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  boundary: int | None = None,
  stop: tuple[int, ...] = (),
) -> tuple[jax.Array, AnyMemory]:
  """Continues B prompts by `length` tokens each.

  Args:
    config: the model.
    params: its parameters.
    prompt_BT: token ids, each row from column 0 on; at least one token.
    memory: of the text before; a `ProjectedMemory` makes decoding fast.
    length: tokens to generate, at least 1.
    key: typed PRNG key; row b draws with `fold_in(key, b)`, so its text does
      not depend on the other rows. Or B keys, one for each row.
    prompt_lengths_B: int, tokens of each row that belong to its prompt; None =
      all. Each row is read as if it were alone.
    temperature: divides the log-probabilities; 0 takes the most likely token.
    top_k: draw from the k most likely tokens only.
    top_p: draw from the most likely tokens that together reach this share.
    min_p: draw from tokens at least this share as likely as the most likely.
    boundary: the id that begins a document: nothing before it is seen.
    stop: ids after which a row ends; the rest of the row repeats the id.

  Returns:
    The new tokens, int32 [B, length], and the memory, of the kind given, of all
    tokens of each row but the last: a prompt that goes on begins with that one.

  Raises:
    InputError: for options out of range, or as `score`.
  """
  result = generate_with_log_probs(
    config,
    params,
    prompt_BT,
    memory,
    length=length,
    key=key,
    prompt_lengths_B=prompt_lengths_B,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    boundary=boundary,
    stop=stop,
  )
  return result.tokens_BL, result.memory


def generate_with_log_probs(
  config: ModelConfig,
  params: dict,
  prompt_BT: jax.Array,
  memory: AnyMemory,
  *,
  length: int,
  key: jax.Array,
  prompt_lengths_B: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  boundary: int | None = None,
  stop: tuple[int, ...] = (),
) -> Generated:
  """As `generate`, with the length and the log-probabilities of each row."""
  sampling = Sampling(temperature, top_k, top_p, min_p)
  check_prompt(config, prompt_BT, prompt_lengths_B)
  if length < 1:
    raise InputError(f'length must be at least 1 token, found {length}')
  rules, n_blocks = _plan(config, sampling, boundary, length)
  result = _generate(
    rules,
    n_blocks,
    params,
    prompt_BT,
    prompt_lengths_B,
    memory,
    key if key.ndim else row_keys(key, len(prompt_BT)),
    stop_ids(config, stop),
    length,
  )
  return result.replace(
    tokens_BL=result.tokens_BL[:, :length], logp_BL=result.logp_BL[:, :length]
  )


def stop_ids(config: ModelConfig, stop: tuple[int, ...]) -> jax.Array:
  """The ids that end a row, as an array; an InputError for unknown ones."""
  for token in stop:
    if not 0 <= token < config.vocab_size:
      raise InputError(
        f'stop has the token id {token}, outside the vocabulary of '
        f'{config.vocab_size}'
      )
  return jnp.array(stop, jnp.int32)


def _plan(
  config: ModelConfig, sampling: Sampling, boundary: int | None, length: int
) -> tuple[Rules, int]:
  """The loop's rules, and how many blocks of steps it has room for.

  Both are rounded up, so that most other lengths need no other program.
  """
  n_blocks = -(-(length - 1) // MOST_STEPS)
  steps = -(-(length - 1) // max(n_blocks, 1))
  rules = Rules(config, sampling, boundary, 8 * -(-steps // 8))
  return rules, n_blocks and 1 << (n_blocks - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
  rules: Rules,
  n_blocks: int,
  params: dict,
  prompt_BT: jax.Array,
  prompt_lengths_B: jax.Array | None,
  memory: AnyMemory,
  keys_B: jax.Array,
  stop_X: jax.Array,
  length: int,
) -> Generated:
  params = compute_copy(rules.config, params)
  decoding, *first = begin(
    *(rules, params, prompt_BT, prompt_lengths_B, memory),
    *(keys_B, jnp.int32(0), stop_X, length),
  )

  def block(carry: tuple) -> tuple:
    i, decoding, *written = carry
    decoding, *new = advance(rules, params, decoding, stop_X, length)
    written = (
      jax.lax.dynamic_update_slice_in_dim(all_LB, new_LB, i, axis=0)
      for all_LB, new_LB in zip(written, new)
    )
    return i + rules.steps, decoding, *written

  room = [(0, n_blocks * rules.steps), (0, 0)]
  written = (jnp.pad(x_B[None], room) for x_B in first)
  carry = (1, decoding, *written)
  if n_blocks:
    carry = jax.lax.while_loop(lambda c: c[1].active_B.any(), block, carry)
  _, decoding, tokens_LB, logp_LB = carry
  # The loop has written nothing where all rows had ended.
  inside_LB = jnp.arange(len(tokens_LB))[:, None] < decoding.length_B
  return Generated(
    jnp.where(inside_LB, tokens_LB, decoding.token_B).T,
    decoding.length_B,
    jnp.where(inside_LB, logp_LB, 0).T,
    remembered(rules.config, decoding.cache),
  )
