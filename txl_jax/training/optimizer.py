"""The optimizer, from optax."""

import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from txl_jax.config import OptimizerConfig
from txl_jax.training import groups
from txl_jax.training.schedules import make_schedule

# What Muon makes orthogonal: axes that a product sums over, and its outputs.
# All other axes (layers) are matrices by themselves. Embeddings, the softmax,
# biases and layer norms are left to Adam.
MATRICES = {
  'layers/attention/(query|key|value|relative)': ((1,), (2, 3)),
  'layers/attention/output': ((1, 2), (3,)),
  'layers/feed_forward/(inner|outer)_kernel': ((1,), (2,)),
  '(embedding|softmax)/projection_.*': ((0,), (1,)),
}
# Muon's updates are as large as those of AdamW at the same learning rate.
MUON_RMS = 0.2


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """The optimizer, on gradients whose global norm is clipped.

  Frozen parameters have no part in the norm and no state.

  Args:
    config: which, and its options.
    steps: updates in the run.
  """
  parts = [_named(config, steps)]
  if config.clip_norm is not None:
    parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.rate_factors:
    parts.append(_scaled(config.rate_factors))
  optimizer = optax.chain(*parts)
  if config.frozen:
    optimizer = optax.partition(
      {'trained': optimizer, 'frozen': optax.set_to_zero()},
      lambda params: groups.labels(params, config.frozen),
    )
  return _checked(config, optimizer)


def _named(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  rate, decay = make_schedule(config, steps), config.weight_decay
  moments = dict(b1=config.b1, b2=config.b2, eps=config.epsilon)
  decaying = dict(weight_decay=decay, mask=groups.decayed)
  match config.name:
    case 'adam':
      return optax.adam(rate, **moments)
    case 'adamw':
      return optax.adamw(rate, **moments, **decaying)
    case 'lamb':
      return optax.lamb(rate, **moments, **decaying)
    case 'adafactor':
      return optax.adafactor(
        rate,
        weight_decay_rate=decay or None,
        weight_decay_mask=groups.decayed,
      )
    case 'sgd':
      parts = [optax.add_decayed_weights(**decaying)] if decay else []
      return optax.chain(*parts, optax.sgd(rate, momentum=config.b1))
    case 'muon':
      # Its own decay knows no mask for what is left to Adam.
      ascent = muon(
        1.0,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=MUON_RMS,
      )
      return optax.chain(
        ascent,
        optax.scale(-1),
        optax.add_decayed_weights(**decaying),
        optax.scale_by_learning_rate(rate),
      )


def matrix_axes(params: Any) -> Any:
  """Which axes of each parameter make a matrix for Muon; None = it has none."""

  def axes(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    for pattern, numbers in MATRICES.items():
      if re.fullmatch(pattern, path):
        return MuonDimensionNumbers(*numbers)
    return None

  return groups.map_paths(axes, params)


def _scaled(
  table: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
  def scale(updates: Any, params: Any = None) -> Any:
    return jax.tree.map(
      lambda update, factor: update * factor,
      updates,
      groups.factors(updates, table),
    )

  return optax.stateless(scale)


def _checked(
  config: OptimizerConfig, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Says at the start which expression matches no parameter."""

  def init(params: Any) -> Any:
    patterns = [pattern for pattern, _ in config.rate_factors]
    groups.check_patterns(params, patterns, 'config.optimizer.rate_factors')
    frozen = list(config.frozen)
    groups.check_patterns(params, frozen, 'config.optimizer.frozen')
    return optimizer.init(params)

  return optax.GradientTransformation(init, optimizer.update)
