"""Optimizer and learning-rate schedule, from optax."""

import jax.numpy as jnp
import optax

from txl_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate of update `count` (from 0): linear warm-up, cosine decay.

  Args:
    config: peak and final rate, warm-up, and which cosine: over the steps that
      follow the warm-up, or over all of them as in the paper's PyTorch code.
    steps: updates in the run.
  """
  warmup, official = config.warmup_steps, config.schedule == 'cosine_official'
  shift = 0 if official else warmup
  cosine = optax.cosine_decay_schedule(
    config.learning_rate,
    max(steps - shift, 1),
    alpha=config.final_learning_rate / config.learning_rate,
  )

  def schedule(count: jnp.ndarray) -> jnp.ndarray:
    done = count if official else count + 1
    ramp = config.learning_rate * done / max(warmup, 1)
    return jnp.where(count < warmup, ramp, cosine(count - shift))

  return schedule


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """The optimizer, on gradients whose global norm is clipped."""
  rate, moments = make_schedule(config, steps), (config.b1, config.b2)
  if config.name == 'sgd':
    optimizer = optax.sgd(rate, momentum=config.b1)
  else:
    make = {'adam': optax.adam, 'lamb': optax.lamb}[config.name]
    optimizer = make(rate, *moments, config.epsilon)
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
