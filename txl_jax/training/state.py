"""The train state: one pytree of arrays."""

import flax
import jax
import jax.numpy as jnp
import optax

from txl_jax.config import Config
from txl_jax.model.functional import init_params
from txl_jax.model.memory import Memory, init_memory


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to continue as if it had not stopped.

  Attributes:
    step: int32, updates done; the stream's position follows from it.
    params: the model's parameters.
    opt_state: the optimizer's state.
    memory: what each row remembers.
    key: typed PRNG key; step i draws from `fold_in(key, i)`.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  memory: Memory
  key: jax.Array


def init_state(
  config: Config, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step, drawn from `config.train.seed`."""
  params_key, key = jax.random.split(jax.random.key(config.train.seed))
  params = init_params(config.model, params_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    memory=init_memory(config.model, config.train.batch_size),
    key=key,
  )
