"""The decoding loop: what its blocks of steps do to its state."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig
from txl_jax.generation.caches import compact, init_cache, read_cached
from txl_jax.generation.prompts import begins, read_prompt
from txl_jax.generation.sampling import Sampling, draw
from txl_jax.model.memory import AnyMemory


@dataclasses.dataclass(frozen=True)
class Rules:
  """What is compiled into a decoding loop.

  Attributes:
    config: the model.
    sampling: how tokens are drawn.
    boundary: the id that begins a document; None = there are no documents.
    steps: between two compactions of the cache.
  """

  config: ModelConfig
  sampling: Sampling
  boundary: int | None
  steps: int


@flax.struct.dataclass
class Decoding:
  """The state of the loop.

  Attributes:
    cache: of all tokens but the last.
    token_B: the last token.
    keys_B: one typed PRNG key per row.
    n_drawn: int32, tokens drawn so far, which numbers the next draw.
    length_B: int32, new tokens of each row.
    active_B: whether a row goes on.
  """

  cache: Any
  token_B: jax.Array
  keys_B: jax.Array
  n_drawn: jax.Array
  length_B: jax.Array
  active_B: jax.Array


def row_keys(key: jax.Array, n_rows: int) -> jax.Array:
  """The key of each row, which does not depend on how many there are."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n_rows))


def begin(
  rules: Rules,
  params: dict,
  prompt_BT: jax.Array,
  prompt_lengths_B: jax.Array | None,
  memory: AnyMemory,
  keys_B: jax.Array,
  n_drawn: jax.Array,
  stop_X: jax.Array,
  limit: jax.Array,
) -> tuple[Decoding, jax.Array, jax.Array]:
  """Reads prompts and draws a token for each, number `n_drawn`.

  Rows end at a stop token, and before the draw of number `limit`.

  Returns:
    The state, the tokens [B] and their log-probabilities [B].
  """
  hidden_BD, memory = read_prompt(
    rules.config, params, prompt_BT, prompt_lengths_B, memory, rules.boundary
  )
  n_rows = len(prompt_BT)
  decoding = Decoding(
    cache=init_cache(rules.config, params, memory, rules.steps),
    token_B=jnp.zeros(n_rows, jnp.int32),
    keys_B=keys_B,
    n_drawn=n_drawn,
    length_B=jnp.zeros(n_rows, jnp.int32),
    active_B=jnp.ones(n_rows, bool),
  )
  return _draw_next(rules, params, decoding, hidden_BD, stop_X, limit)


def advance(
  rules: Rules,
  params: dict,
  decoding: Decoding,
  stop_X: jax.Array,
  limit: jax.Array,
) -> tuple[Decoding, jax.Array, jax.Array]:
  """Draws as many more tokens as the rules have steps, P.

  Returns:
    The state, the tokens [P, B] and their log-probabilities [P, B]; a row that
    has ended repeats its last token, with log-probability 0.
  """

  def step(decoding: Decoding, _: None) -> tuple[Decoding, tuple]:
    before, active_B = decoding.cache, decoding.active_B
    tokens_B1 = decoding.token_B[:, None]
    hidden_B1D, cache = read_cached(
      *(rules.config, params, tokens_B1, before),
      begins(tokens_B1, rules.boundary),
    )
    # What a row reads after its end does not count.
    valid_B = jnp.where(active_B, cache.valid_B, before.valid_B)
    decoding = decoding.replace(cache=cache.replace(valid_B=valid_B))
    decoding, *new = _draw_next(
      rules, params, decoding, hidden_B1D[:, 0], stop_X, limit
    )
    return decoding, (*new, active_B)

  decoding, (tokens_PB, logp_PB, active_PB) = jax.lax.scan(
    step, decoding, length=rules.steps
  )
  cache = compact(decoding.cache, active_PB.sum(axis=0, dtype=jnp.int32))
  return decoding.replace(cache=cache), tokens_PB, logp_PB


def _draw_next(
  rules: Rules,
  params: dict,
  decoding: Decoding,
  hidden_BD: jax.Array,
  stop_X: jax.Array,
  limit: jax.Array,
) -> tuple[Decoding, jax.Array, jax.Array]:
  n_drawn, active_B = decoding.n_drawn, decoding.active_B
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(decoding.keys_B, n_drawn)
  token_B, logp_B = draw(
    rules.config, params, rules.sampling, hidden_BD, keys_B
  )
  token_B = jnp.where(active_B, token_B, decoding.token_B)
  goes_on_B = ~jnp.isin(token_B, stop_X) & (n_drawn + 1 < limit)
  decoding = decoding.replace(
    token_B=token_B,
    n_drawn=n_drawn + 1,
    length_B=decoding.length_B + active_B,
    active_B=active_B & goes_on_B,
  )
  return decoding, token_B, jnp.where(active_B, logp_B, 0)
