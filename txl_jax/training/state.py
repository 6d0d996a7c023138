"""The train state: one pytree of arrays."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from txl_jax.config import Config
from txl_jax.model.functional import init_params
from txl_jax.model.memory import Memory, init_memory
from txl_jax.training.averaging import init_average
from txl_jax.training.schedules import Plateau, init_plateau

# Parts of the state that some runs do not have.
_OPTIONAL = ('average', 'plateau')


@flax.struct.dataclass
class TrainState:
  """Everything a run needs to continue as if it had not stopped.

  Attributes:
    step: int32, steps done; the stream's position follows from it.
    params: the model's parameters.
    opt_state: the optimizer's state.
    memory: what each row remembers.
    key: typed PRNG key; step i draws from `fold_in(key, i)`.
    average: of the parameters; None if there is none.
    plateau: what validation has done to the learning rate; None if nothing.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  memory: Memory
  key: jax.Array
  average: dict | None = None
  plateau: Plateau | None = None


def init_state(
  config: Config, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step, drawn from `config.train.seed`."""
  params_key, key = _keys(config.train.seed)
  params = init_params(config.model, params_key)
  falls = config.optimizer.schedule == 'plateau'
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    memory=init_memory(config.model, config.train.batch_size),
    key=key,
    average=init_average(config.optimizer, params),
    plateau=init_plateau() if falls else None,
  )


def run_key(seed: int) -> jax.Array:
  """The key that a run draws from at each step."""
  return _keys(seed)[1]


def _keys(seed: int) -> jax.Array:
  return jax.random.split(jax.random.key(seed))


def storable(state: TrainState) -> dict[str, Any]:
  """A state as Orbax stores it: without arrays of size zero (no memory)."""
  tree = {
    'step': state.step,
    'params': state.params,
    'opt_state': state.opt_state,
    'key': state.key,
    'valid': state.memory.valid_B,
  }
  if state.memory.length:
    tree['hidden'] = state.memory.hidden_NBMD
  for name in _OPTIONAL:
    if getattr(state, name) is not None:
      tree[name] = getattr(state, name)
  return tree


def from_storable(tree: dict[str, Any], abstract: TrainState) -> TrainState:
  """Undoes `storable`; `abstract` has the shapes and shardings."""
  memory = abstract.memory
  hidden = tree.get('hidden')
  if hidden is None:
    shape, dtype = memory.hidden_NBMD.shape, memory.hidden_NBMD.dtype
    hidden = jnp.zeros(shape, dtype, device=memory.hidden_NBMD.sharding)
  return TrainState(
    step=tree['step'],
    params=tree['params'],
    opt_state=tree['opt_state'],
    memory=memory.replace(hidden_NBMD=hidden, valid_B=tree['valid']),
    key=tree['key'],
    **{name: tree.get(name) for name in _OPTIONAL},
  )
