"""Decoding: a prompt, then token after token, with memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.generation.sampling import check_options, sample
from txl_jax.model.functional import check_tokens
from txl_jax.model.memory import AnyMemory
from txl_jax.model.transformer import TransformerXL


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
  boundary: int | None = None,
) -> tuple[jax.Array, AnyMemory]:
  """Continues B prompts by `length` tokens each.

  Args:
    config: the model.
    params: its parameters.
    prompt_BT: token ids, each row from column 0 on; at least one token.
    memory: of the text before; a `ProjectedMemory` makes decoding fast.
    length: tokens to generate, at least 1.
    key: typed PRNG key; row b draws with `fold_in(key, b)`, so its text does
      not depend on the other rows.
    prompt_lengths_B: int, tokens of each row that belong to its prompt; None =
      all. A row shorter than T begins a document: it does not see the memory.
    temperature: divides the log-probabilities; 0 takes the most likely token.
    top_k: draw from the k most likely tokens only.
    top_p: draw from the most likely tokens that together reach this share.
    boundary: the id that begins a document: nothing before it is seen.

  Returns:
    The new tokens, int32 [B, length], and the memory, of the kind given, of all
    tokens but the last: a prompt that goes on begins with that one.

  Raises:
    InputError: for options out of range, or as `score`.
  """
  _check_positions(config)
  check_options(temperature, top_k, top_p)
  check_tokens(config, prompt_BT, 'prompt_BT')
  if length < 1 or prompt_BT.shape[1] < 1:
    raise InputError(
      f'length and prompt must have at least 1 token, found {length} and '
      f'{prompt_BT.shape[1]}'
    )
  _check_lengths(prompt_lengths_B, prompt_BT)
  return _generate(
    config,
    length,
    (temperature, top_k, top_p),
    boundary,
    params,
    prompt_BT,
    memory,
    key,
    prompt_lengths_B,
  )


def _check_positions(config: ModelConfig) -> None:
  if config.absolute_positions:
    raise InputError(
      f'a model with position_encoding {config.position_encoding!r} cannot '
      'generate: token by token, all would have the last absolute position'
    )


def _check_lengths(lengths_B: jax.Array | None, prompt_BT: jax.Array) -> None:
  if lengths_B is None or isinstance(lengths_B, jax.core.Tracer):
    return
  lengths_B, (n_rows, longest) = np.asarray(lengths_B), prompt_BT.shape
  inside = (1 <= lengths_B) & (lengths_B <= longest)
  if lengths_B.shape != (n_rows,) or not inside.all():
    raise InputError(
      f'prompt_lengths_B must be {n_rows} numbers from 1 to {longest}, found '
      f'{lengths_B.tolist()}'
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
  config: ModelConfig,
  length: int,
  options: tuple[float, int | None, float | None],
  boundary: int | None,
  params: dict,
  prompt_BT: jax.Array,
  memory: AnyMemory,
  key: jax.Array,
  prompt_lengths_B: jax.Array | None,
) -> tuple[jax.Array, AnyMemory]:
  temperature, top_k, top_p = options
  model, variables = TransformerXL(config), {'params': params}
  n_rows = prompt_BT.shape[0]
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n_rows))

  def read(
    tokens_BT: jax.Array, starts_BT: jax.Array | None, memory: AnyMemory
  ) -> tuple[jax.Array, AnyMemory]:
    """Log-probabilities [B, V] of the token after the last."""
    if boundary is not None:
      begun_BT = tokens_BT == boundary
      starts_BT = begun_BT if starts_BT is None else starts_BT | begun_BT
    hidden_BTD, memory = model.apply(variables, tokens_BT, memory, starts_BT)
    last_B1D = hidden_BTD[:, -1:]
    return model.apply(variables, last_B1D, method='log_probs')[:, 0], memory

  def draw(logp_BV: jax.Array, i: jax.Array) -> jax.Array:
    step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
    return sample(
      logp_BV, step_keys_B, temperature=temperature, top_k=top_k, top_p=top_p
    )

  def step(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
    token_B, memory = carry
    logp_BV, memory = read(token_B[:, None], None, memory)
    token_B = draw(logp_BV, i)
    return (token_B, memory), token_B

  logp_BV, memory = read(*_right_align(prompt_BT, prompt_lengths_B), memory)
  first_B = draw(logp_BV, 0)
  (_, memory), rest_LB = jax.lax.scan(
    step, (first_B, memory), jnp.arange(1, length)
  )
  return jnp.concatenate([first_B[None], rest_LB]).T, memory


def _right_align(
  prompt_BT: jax.Array, lengths_B: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Prompts moved to the right end, and where the shorter ones start."""
  if lengths_B is None:
    return prompt_BT, None
  longest = prompt_BT.shape[1]
  padding_B1 = longest - jnp.asarray(lengths_B)[:, None]
  column_T = jnp.arange(longest)
  # Padding repeats the first token; the start mark hides it.
  source_BT = jnp.maximum(column_T - padding_B1, 0)
  starts_BT = (column_T == padding_B1) & (padding_B1 > 0)
  return jnp.take_along_axis(prompt_BT, source_BT, axis=1), starts_BT
