"""The model as plain functions of configuration, parameters and memory.

All are pure and differentiable, and work inside another project's `jax.jit`,
`jax.grad`, `jax.vmap` and mesh. Called outside of any, they compile themselves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model.memory import (
  AnyMemory,
  ProjectedMemory,
  init_memory,
)
from txl_jax.model.transformer import TransformerXL
from txl_jax.ops.layer_norm import layer_norm
from txl_jax.ops.products import project


def init_params(config: ModelConfig, key: jax.Array) -> dict:
  """Every parameter, softmax included, in float32, freshly drawn.

  Initialisation is the paper's code's: matrices, embeddings, u and v from
  N(0, init_std), projections from N(0, projection_init_std), layer-norm scales
  from N(1, init_std), biases 0. Parameters of the layers are stacked [N, ...].

  Args:
    config: the model.
    key: from `jax.random.key`.
  """
  return _init_params(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _init_params(config: ModelConfig, key: jax.Array) -> dict:
  tokens_BT = jnp.zeros((1, 1), jnp.int32)
  memory = init_memory(config, 1)
  model = TransformerXL(config)
  return model.init(key, tokens_BT, tokens_BT, memory, method='score')['params']


def score(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  targets_BT: jax.Array,
  memory: AnyMemory,
  *,
  starts_BT: jax.Array | None = None,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, AnyMemory]:
  """Scores one segment of B rows.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: token ids.
    targets_BT: the ids that follow them.
    memory: of the text before; either kind.
    starts_BT: True where a token begins a document: nothing before is seen.
    dropout_key: turns dropout on.

  Returns:
    Negative log-likelihoods [B, T], natural log, in token order, at least
    float32, and the memory after the segment, of the kind given. An id outside
    the vocabulary gives NaN where it cannot be refused (under `jax.jit`).

  Raises:
    InputError: for an id outside the vocabulary, a memory of other rows, or
      one too short for the attention span.
  """
  check_tokens(config, tokens_BT, 'tokens_BT')
  check_tokens(config, targets_BT, 'targets_BT')
  return _score(
    config, params, tokens_BT, targets_BT, memory, starts_BT, dropout_key
  )


@functools.partial(jax.jit, static_argnums=0)
def _score(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  targets_BT: jax.Array,
  memory: AnyMemory,
  starts_BT: jax.Array | None,
  dropout_key: jax.Array | None,
) -> tuple[jax.Array, AnyMemory]:
  return TransformerXL(config).apply(
    {'params': params},
    tokens_BT,
    targets_BT,
    memory,
    starts_BT,
    train=dropout_key is not None,
    rngs={} if dropout_key is None else {'dropout': dropout_key},
    method='score',
  )


def log_probs(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  memory: AnyMemory,
  *,
  starts_BT: jax.Array | None = None,
) -> tuple[jax.Array, AnyMemory]:
  """Log-probabilities of each next token over the full vocabulary [B, T, V].

  The other arguments, the returned memory and the errors are those of `score`.
  """
  check_tokens(config, tokens_BT, 'tokens_BT')
  return _log_probs(config, params, tokens_BT, memory, starts_BT)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(
  config: ModelConfig,
  params: dict,
  tokens_BT: jax.Array,
  memory: AnyMemory,
  starts_BT: jax.Array | None,
) -> tuple[jax.Array, AnyMemory]:
  model, variables = TransformerXL(config), {'params': params}
  hidden_BTD, memory = model.apply(variables, tokens_BT, memory, starts_BT)
  return model.apply(variables, hidden_BTD, method='log_probs'), memory


def project_memory(
  config: ModelConfig, params: dict, memory: AnyMemory
) -> ProjectedMemory:
  """The memory's keys and values under the given parameters.

  A projected memory gives the same results with less work, as long as the
  parameters stay what they are. One that is projected already is returned.
  """
  if isinstance(memory, ProjectedMemory):
    return memory

  def project_layer(layer: dict, hidden_BMD: jax.Array) -> tuple:
    if config.pre_norm:
      norm = layer['attention_norm']
      hidden_BMD = layer_norm(
        hidden_BMD, norm['scale'], norm['bias'], config.layer_norm_epsilon
      )
    return tuple(
      project(hidden_BMD, layer['attention'][name].astype(config.dtype))
      for name in ('key', 'value')
    )

  keys_and_values = jax.vmap(project_layer)(
    params['layers'], memory.hidden_NBMD
  )
  return ProjectedMemory(*keys_and_values, memory.valid_B)


def check_tokens(config: ModelConfig, tokens: jax.Array, name: str) -> None:
  """Raises an InputError for a concrete id outside the vocabulary."""
  if isinstance(tokens, jax.core.Tracer) or not np.size(tokens):
    return
  if not getattr(tokens, 'is_fully_addressable', True):
    return
  ids = np.asarray(tokens)
  for extreme in (ids.min(), ids.max()):
    if not 0 <= extreme < config.vocab_size:
      raise InputError(
        f'{name} has the token id {extreme}, outside the vocabulary of '
        f'{config.vocab_size}'
      )
