"""Means of the parameters over the updates, to be evaluated in their place."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from txl_jax.optimizer_config import OptimizerConfig


def init_average(config: OptimizerConfig, params: Any) -> dict | None:
  """The average before the first update: the parameters themselves.

  Args:
    config: whose `average` says which.
    params: the parameters.

  Returns:
    None for 'none'; else a dict of `params`, float32 copies, and `count`, an
    int32: the updates averaged so far.
  """
  if config.average == 'none':
    return None
  copies = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
  return {'params': copies, 'count': jnp.zeros((), jnp.int32)}


def update_average(
  config: OptimizerConfig,
  average: dict | None,
  params: Any,
  step: jax.Array | int,
  steps: int,
) -> dict | None:
  """The average after an update.

  'ema' is the mean of the parameters after updates 1..n with weights
  proportional to `average_decay ** (n - i)`: an exponential moving average with
  the correction for its beginning, as of Adam's moments (Kingma & Ba 2015,
  section 3). 'tail' is the plain mean over the last `average_last_fraction` of
  the run (Izmailov et al. 2018), and the newest parameters before that.

  Args:
    config: which average.
    average: that before the update, from `init_average`.
    params: the parameters after it.
    step: updates done, this one included; from 1 to `steps`.
    steps: updates in the run.
  """
  if average is None:
    return None
  count = average['count'] + 1
  if config.average == 'ema':
    # 1 - decay**count would lose its digits to rounding.
    log = math.log(config.average_decay)
    weight = math.expm1(log) / jnp.expm1(count * jnp.float32(log))
  else:
    tail = max(round(config.average_last_fraction * steps), 1)
    count = jnp.where(step > steps - tail, count, 0)
    weight = 1 / jnp.maximum(count, 1).astype(jnp.float32)

  def move(mean: jax.Array, param: jax.Array) -> jax.Array:
    param = param.astype(jnp.float32)
    return jnp.where(weight >= 1, param, mean + weight * (param - mean))

  return {
    'params': jax.tree.map(move, average['params'], params),
    'count': count,
  }


def averaged(config: OptimizerConfig, average: dict | None, params: Any) -> Any:
  """What is evaluated: the average, or the parameters if there is none."""
  return params if config.average == 'none' else average['params']
