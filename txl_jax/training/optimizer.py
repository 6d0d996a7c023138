"""The optimizers, from optax."""

import functools
from typing import Any

import jax
import optax

from txl_jax.optimizer_config import OptimizerConfig
from txl_jax.training import groups
from txl_jax.training.muon import scale_by_muon
from txl_jax.training.schedules import make_schedule

# Adafactor's second moment of an array is factored if two axes are at least so
# long; optax's 128 would leave out attention, whose heads are narrower.
LEAST_FACTORED = 32


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """The optimizer that a configuration describes.

  In this order: gradients of frozen parameters are left out, the global norm of
  the others is clipped, the rule below is applied, and its result is multiplied
  by minus the learning rate and the factor of the parameter's group.

  | `name` | rule |
  |---|---|
  | `adam` | L2 penalty, then Adam (Kingma & Ba 2015) |
  | `adamw` | Adam, then weight decay (Loshchilov & Hutter 2019) |
  | `lamb` | as `adamw`, scaled to the norm of the parameter (You et al. 2020) |
  | `adafactor` | without momentum, relative to the parameter (Shazeer & Stern \
2018), then weight decay; rates are about 1e-2 |
  | `sgd` | L2 penalty, then momentum `b1` |
  | `muon` | see training/muon.py, then weight decay |

  Both an L2 penalty and weight decay are `weight_decay` times the parameter.
  What LAMB and Adafactor do to an array they do to each layer by itself.

  Args:
    config: rule, rate, clipping and groups of parameters.
    steps: updates in the run.

  Returns:
    A transformation whose state is made of arrays. Of those that mirror a
    parameter the path ends with the parameter's. `init` raises an InputError
    for a pattern that matches no parameter; `update` needs the parameters with
    `lamb`, `adafactor` and weight decay.
  """
  clip = []
  if config.clip_norm is not None:
    clip = [optax.clip_by_global_norm(config.clip_norm)]
  rate = optax.scale_by_learning_rate(make_schedule(config, steps))
  factors = [_scale_by_group(config)] if config.rate_factors else []
  optimizer = optax.chain(*clip, *_rule(config), rate, *factors)
  optimizer = groups.without_frozen(optimizer, config)

  def init(params: Any) -> optax.OptState:
    groups.check_patterns(config, params)
    return optimizer.init(params)

  return optax.GradientTransformation(init, optimizer.update)


def _rule(config: OptimizerConfig) -> list[optax.GradientTransformation]:
  """What is done between clipping and the learning rate."""
  adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
  decay = []
  if config.weight_decay:
    mask = functools.partial(groups.decayed, config)
    decay = [optax.add_decayed_weights(config.weight_decay, mask)]
  rules = {
    'adam': lambda: [*decay, adam],
    'adamw': lambda: [adam, *decay],
    'lamb': lambda: [adam, *decay, _by_layer(optax.scale_by_trust_ratio())],
    'adafactor': lambda: [*_adafactor(), *decay],
    'sgd': lambda: [*decay, optax.trace(config.b1)],
    'muon': lambda: [scale_by_muon(config), *decay],
  }
  return rules[config.name]()


def _adafactor() -> list[optax.GradientTransformation]:
  return [
    optax.scale_by_factored_rms(min_dim_size_to_factor=LEAST_FACTORED),
    _by_layer(optax.clip_by_block_rms(1.0)),
    _by_layer(optax.scale_by_param_block_rms()),
  ]


def _by_layer(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Applies what has no state, and treats arrays alone, layer by layer."""

  def update_array(update: jax.Array, param: jax.Array) -> jax.Array:
    return inner.update(update, optax.EmptyState(), param)[0]

  def update_any(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    stacked = path.startswith('layers/')
    return (jax.vmap(update_array) if stacked else update_array)(update, param)

  return optax.stateless(
    lambda updates, params: jax.tree.map(
      update_any, groups.map_paths(str, updates), updates, params
    )
  )


def _scale_by_group(config: OptimizerConfig) -> optax.GradientTransformation:
  def scale(updates: Any, params: Any) -> Any:
    del params
    factor = functools.partial(groups.rate_factor, config)
    return jax.tree.map(
      lambda update, by: update * by, updates, groups.map_paths(factor, updates)
    )

  return optax.stateless(scale)
