"""Learning rates: by the update, and by what validation finds."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import optax

from txl_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of update `count` (from 0): linear warm-up, then decay.

  Args:
    config: peak and final rate, warm-up, and the form of the decay.
    steps: updates in the run.
  """
  warmup, official = config.warmup_steps, config.schedule == 'cosine_official'
  decay = _decay(config, steps)

  def schedule(count: jax.Array) -> jax.Array:
    done = count if official else count + 1
    ramp = config.learning_rate * done / max(warmup, 1)
    return jnp.where(count < warmup, ramp, decay(count))

  return schedule


def _decay(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """The rate of an update after the warm-up."""
  peak, final, warmup = (
    config.learning_rate,
    config.final_learning_rate,
    config.warmup_steps,
  )
  if config.schedule in ('constant', 'plateau'):
    return lambda count: jnp.full((), peak)
  if config.schedule == 'inverse_square_root':
    whole = max(warmup, 1)
    return lambda count: jnp.maximum(
      peak * jnp.sqrt(whole / jnp.maximum(count + 1, whole)), final
    )
  # As in the paper's code, the cosine runs from the first update on.
  shift = 0 if config.schedule == 'cosine_official' else warmup
  length = max(steps - shift, 1)
  if config.schedule == 'linear':
    form = optax.linear_schedule(peak, final, length)
  else:
    form = optax.cosine_decay_schedule(peak, length, alpha=final / peak)
  return lambda count: form(count - shift)


def in_steps(config: OptimizerConfig, tokens_per_step: int) -> OptimizerConfig:
  """The configuration with its warm-up counted in updates."""
  if config.warmup_tokens is None:
    return config
  steps = -(-config.warmup_tokens // tokens_per_step)
  return dataclasses.replace(config, warmup_steps=steps)


@flax.struct.dataclass
class Plateau:
  """What validation has done to the learning rate.

  Attributes:
    scale: float32, every update is multiplied by it.
    best: float32, the lowest loss so far.
    waited: int32, validations since then, or since the rate last fell.
  """

  scale: jax.Array
  best: jax.Array
  waited: jax.Array


def init_plateau() -> Plateau:
  """Before the first validation."""
  best = jnp.full((), jnp.inf, jnp.float32)
  return Plateau(jnp.ones((), jnp.float32), best, jnp.zeros((), jnp.int32))


def after_validation(
  config: OptimizerConfig, plateau: Plateau, loss: float
) -> Plateau:
  """Lowers the rate after too many validations without a better one.

  Args:
    config: by what it falls, after how many, and where it ends.
    plateau: before the validation.
    loss: nats per token that the validation found.
  """
  improved = loss < plateau.best
  waited = jnp.where(improved, 0, plateau.waited + 1)
  falls = waited > config.plateau_patience
  least = config.final_learning_rate / config.learning_rate
  lower = jnp.maximum(plateau.scale * config.plateau_factor, least)
  return Plateau(
    scale=jnp.where(falls, lower, plateau.scale),
    best=jnp.minimum(plateau.best, loss),
    waited=jnp.where(falls, 0, waited).astype(jnp.int32),
  )
