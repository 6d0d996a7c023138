"""Parameters by their paths: which decay, are frozen, or learn how fast."""

import re
from collections.abc import Callable
from typing import Any

import jax

from txl_jax.errors import InputError
from txl_jax.parallel.partition import path_name

# Biases and layer norms: what weight decay leaves alone.
UNDECAYED = re.compile('(.*[/_])?(bias|scale)')


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """The tree with `function(path, leaf)` at each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(path_name(path), leaf), tree
  )


def decayed(params: Any) -> Any:
  """Which parameters weight decay makes smaller."""
  return map_paths(lambda path, _: not UNDECAYED.fullmatch(path), params)


def factors(params: Any, table: tuple[tuple[str, float], ...]) -> Any:
  """By what the learning rate of each parameter is multiplied.

  Args:
    params: or anything of their structure.
    table: regular expressions for whole paths, and factors; the first that
      matches counts.
  """

  def factor(path: str, _: Any) -> float:
    found = (f for pattern, f in table if re.fullmatch(pattern, path))
    return next(found, 1.0)

  return map_paths(factor, params)


def labels(params: Any, frozen: tuple[str, ...]) -> Any:
  """'frozen' where one of the patterns matches, else 'trained'."""

  def label(path: str, _: Any) -> str:
    matches = any(re.fullmatch(pattern, path) for pattern in frozen)
    return 'frozen' if matches else 'trained'

  return map_paths(label, params)


def check_patterns(params: Any, patterns: list[str], field: str) -> None:
  """Raises an InputError for an expression that matches no parameter."""
  paths: list[str] = jax.tree.leaves(map_paths(lambda path, _: path, params))
  for pattern in patterns:
    try:
      found = any(re.fullmatch(pattern, path) for path in paths)
    except re.error as error:
      raise InputError(
        f'{field}: {pattern!r} is no regular expression ({error})'
      ) from error
    if not found:
      some = ', '.join(paths[:3])
      raise InputError(
        f'{field}: {pattern!r} matches no parameter; some are {some}'
      )
