"""Averages of the parameters, which evaluation uses instead of them."""

import flax
import jax
import jax.numpy as jnp

from txl_jax.config import OptimizerConfig


@flax.struct.dataclass
class Average:
  """A running mean.

  Attributes:
    count: int32, how many updates are in it.
    mean: like the parameters, float32 or wider.
  """

  count: jax.Array
  mean: dict


def init_average(config: OptimizerConfig, params: dict) -> Average | None:
  """Before the first update; None if none is kept."""
  if config.average == 'none':
    return None
  # A copy: the state is donated, and no buffer can be donated twice.
  return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))


def update_average(
  config: OptimizerConfig,
  average: Average,
  params: dict,
  step: jax.Array,
  steps: int,
) -> Average:
  """Adds the parameters after an update.

  `ema` is the exponential moving average, its weights divided by their sum so
  that the first updates do not count for too much. `tail` is the equal mean of
  the last part of the run (stochastic weight averaging); before that part it is
  the parameters themselves.

  Args:
    config: which average, its decay or its part of the run.
    average: so far.
    params: after the update.
    step: of the update, from 0.
    steps: updates in the run.
  """
  if config.average == 'ema':
    count = average.count + 1
    decay = config.average_decay
    share = (1 - decay) / (1 - decay**count)
  else:
    begin = steps - round(steps * config.average_last_fraction)
    count = average.count + (step >= begin)
    share = 1 / jnp.maximum(count, 1)
  mean = jax.tree.map(
    lambda m, p: m + share.astype(m.dtype) * (p - m), average.mean, params
  )
  return Average(count.astype(jnp.int32), mean)


def averaged(
  config: OptimizerConfig, average: Average | None, params: dict
) -> dict:
  """What evaluation uses: the average, or the parameters if none is kept."""
  return params if average is None else average.mean
