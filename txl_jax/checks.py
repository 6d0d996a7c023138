"""Checks of the fields of a configuration, each with a sentence if it fails."""

import re
from typing import Any

from txl_jax.errors import InputError


def require(condition: bool, config: Any, name: str, expected: str) -> None:
  """Raises an InputError about a field unless the condition holds."""
  if not condition:
    section = type(config).__name__.removesuffix('Config').lower()
    found = getattr(config, name)
    raise InputError(
      f'config.{section}.{name} must be {expected}, found {found!r}'
    )


def at_least(config: Any, low: int, names: str) -> None:
  """The fields, where they are not None, must be at least `low`."""
  for name in names.split():
    value = getattr(config, name)
    require(value is None or value >= low, config, name, f'at least {low}')


def above_zero(config: Any, names: str) -> None:
  """The fields, where they are not None, must be above 0."""
  for name in names.split():
    value = getattr(config, name)
    require(value is None or value > 0, config, name, 'above 0')


def fraction(config: Any, names: str) -> None:
  """The fields must be in [0, 1)."""
  for name in names.split():
    require(0 <= getattr(config, name) < 1, config, name, 'in [0, 1)')


def inside(config: Any, names: str) -> None:
  """The fields must be in (0, 1)."""
  for name in names.split():
    require(0 < getattr(config, name) < 1, config, name, 'in (0, 1)')


def patterns(config: Any, name: str, values: tuple[str, ...]) -> None:
  """The values, which stand in a field, must be regular expressions."""
  for value in values:
    try:
      re.compile(value)
    except re.error as error:
      expected = f'made of regular expressions ({value!r}: {error})'
      require(False, config, name, expected)
