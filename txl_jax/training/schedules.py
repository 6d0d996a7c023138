"""Learning rates: a schedule of updates, and the validations' say in it."""

import dataclasses
import math
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from txl_jax.errors import InputError
from txl_jax.optimizer_config import OptimizerConfig


def steps_for(tokens: int, tokens_per_step: int) -> int:
  """Updates that read so many tokens, the last one perhaps a few more."""
  return -(-tokens // tokens_per_step)


def in_steps(config: OptimizerConfig, tokens_per_step: int) -> OptimizerConfig:
  """The same configuration with its warm-up counted in updates.

  Args:
    config: whose `warmup_tokens`, if given, replace `warmup_steps`.
    tokens_per_step: tokens that one update reads, on all devices together.
  """
  if config.warmup_tokens is None:
    return config
  steps = steps_for(config.warmup_tokens, tokens_per_step)
  return dataclasses.replace(config, warmup_steps=steps, warmup_tokens=None)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of update `count` (from 0): linear warm-up, what follows.

  | `schedule` | rate after the warm-up of W updates, in a run of S |
  |---|---|
  | `cosine` | half a cosine wave from update W to S, peak to final rate |
  | `cosine_official` | the same from update 0 on, as in the paper's code |
  | `linear` | a straight line from update W to S, peak to final rate |
  | `inverse_square_root` | peak * sqrt(W / (count + 1)), at least final rate |
  | `constant` | the peak |
  | `plateau` | the peak; the train step multiplies by `Plateau.scale` |

  Args:
    config: schedule, peak and final rate, warm-up in updates.
    steps: updates in the run.

  Raises:
    InputError: if the warm-up is counted in tokens; `in_steps` converts it.
  """
  if config.warmup_tokens is not None:
    raise InputError(
      'config.optimizer.warmup_tokens must be converted by in_steps before a '
      f'schedule is made, found {config.warmup_tokens}'
    )
  warmup, official = config.warmup_steps, config.schedule == 'cosine_official'
  decay = _after_warmup(config, steps)

  def schedule(count: jax.Array) -> jax.Array:
    done = count if official else count + 1
    ramp = config.learning_rate * done / max(warmup, 1)
    return jnp.where(count < warmup, ramp, decay(count))

  return schedule


def _after_warmup(config: OptimizerConfig, steps: int) -> Callable:
  """The schedule, valid from the end of the warm-up on."""
  peak, final = config.learning_rate, config.final_learning_rate
  warmup = config.warmup_steps
  left = max(steps - warmup, 1)
  if config.schedule == 'cosine':
    wave = optax.cosine_decay_schedule(peak, left, alpha=final / peak)
    return lambda count: wave(count - warmup)
  if config.schedule == 'cosine_official':
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=final / peak)
  if config.schedule == 'linear':
    line = optax.linear_schedule(peak, final, left)
    return lambda count: line(count - warmup)
  if config.schedule == 'inverse_square_root':
    top = peak * math.sqrt(max(warmup, 1))
    return lambda count: jnp.maximum(top / jnp.sqrt(count + 1), final)
  return optax.constant_schedule(peak)


@flax.struct.dataclass
class Plateau:
  """What validations have done to the learning rate; part of the train state.

  Attributes:
    scale: float32, the factor that updates are multiplied by.
    best: float32, the lowest validation loss so far.
    waited: int32, validations in a row that were not the best, since the last
      reduction.
  """

  scale: jax.Array
  best: jax.Array
  waited: jax.Array


def init_plateau() -> Plateau:
  """Before the first validation: the full rate."""
  return Plateau(
    scale=jnp.ones((), jnp.float32),
    best=jnp.full((), jnp.inf, jnp.float32),
    waited=jnp.zeros((), jnp.int32),
  )


def after_validation(
  config: OptimizerConfig, plateau: Plateau, loss: jax.Array | float
) -> Plateau:
  """Reduces the rate when the validation loss has stopped falling.

  As `ReduceLROnPlateau` in the paper's PyTorch code, whose patience of 0 is 1
  here; but any fall is an improvement. optax's own `reduce_on_plateau` looks at
  the loss of every update instead.

  Args:
    config: factor, patience, and the rates that bound the scale from below.
    plateau: what was before.
    loss: of the validation, in nats; not a number is no improvement.

  Returns:
    The next plateau; the same one if the schedule is not 'plateau'.
  """
  if config.schedule != 'plateau':
    return plateau
  loss = jnp.asarray(loss, jnp.float32)
  better = loss < plateau.best
  waited = jnp.where(better, 0, plateau.waited + 1)
  due = waited >= config.plateau_patience
  least = min(config.final_learning_rate / config.learning_rate, 1.0)
  reduced = jnp.maximum(plateau.scale * config.plateau_factor, least)
  return Plateau(
    scale=jnp.where(due, reduced, plateau.scale),
    best=jnp.where(better, loss, plateau.best),
    waited=jnp.where(due, 0, waited),
  )
