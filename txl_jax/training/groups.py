"""Groups of parameters, told apart by their paths.

A path is that of `txl_jax.init_params`, joined by slashes, such as
`layers/attention/query`; a pattern must match the whole of it.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from txl_jax.errors import InputError
from txl_jax.optimizer_config import OptimizerConfig
from txl_jax.parallel.partition import path_name


def map_paths(function: Callable[[str], Any], tree: Any) -> Any:
  """The tree of `function(path)` for the path of each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, _: function(path_name(keys)), tree
  )


def paths(tree: Any) -> list[str]:
  """The paths of all leaves."""
  return [
    path_name(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


def matches(patterns: Sequence[str], path: str) -> bool:
  """Whether one of the patterns matches the whole path."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def rate_factor(config: OptimizerConfig, path: str) -> float:
  """By what the learning rate of a parameter is multiplied."""
  for pattern, factor in config.rate_factors:
    if matches([pattern], path):
      return factor
  return 1.0


def decayed(config: OptimizerConfig, tree: Any) -> Any:
  """A tree of bools: which parameters weight decay applies to."""
  return map_paths(lambda path: not matches(config.undecayed, path), tree)


def stop_frozen(config: OptimizerConfig, params: Any) -> Any:
  """The parameters; no gradient flows into those that are frozen.

  The loss is to be computed from these: then what only the frozen parameters'
  gradients need is not computed, and they count nothing in a norm.
  """
  if not config.frozen:
    return params
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: (
      jax.lax.stop_gradient(leaf)
      if matches(config.frozen, path_name(keys))
      else leaf
    ),
    params,
  )


def without_frozen(
  optimizer: optax.GradientTransformation, config: OptimizerConfig
) -> optax.GradientTransformation:
  """The optimizer for the parameters that are trained.

  The frozen ones have no state, an update of 0, and gradients that the
  optimizer does not see.
  """
  if not config.frozen:
    return optimizer
  return optax.partition(
    {'trained': optimizer, 'frozen': optax.set_to_zero()},
    lambda tree: map_paths(
      lambda path: 'frozen' if matches(config.frozen, path) else 'trained', tree
    ),
  )


def check_patterns(config: OptimizerConfig, params: Any) -> None:
  """Raises an InputError for a pattern that matches no parameter.

  It raises one, too, if all parameters are frozen. `undecayed` is checked where
  there is weight decay.
  """
  known = paths(params)
  fields = {
    'rate_factors': [pattern for pattern, _ in config.rate_factors],
    'frozen': config.frozen,
    'undecayed': config.undecayed if config.weight_decay else (),
  }
  for field, patterns in fields.items():
    for pattern in patterns:
      if not any(matches([pattern], path) for path in known):
        (near,) = difflib.get_close_matches(pattern, known, n=1, cutoff=0)
        raise InputError(
          f'config.optimizer.{field}: the pattern {pattern!r} matches the '
          f'whole path of no parameter; the nearest one is {near!r}'
        )
  if all(matches(config.frozen, path) for path in known):
    raise InputError(
      'config.optimizer.frozen must leave a parameter to be trained, found '
      f'{config.frozen!r}'
    )
