"""Checks of fields: one sentence that names the field, and what it must be."""

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
  """Each of the fields must be None or at least `low`."""
  for name in names.split():
    value = getattr(config, name)
    require(value is None or value >= low, config, name, f'at least {low}')


def above_zero(config: Any, names: str) -> None:
  """Each of the fields must be None or above 0."""
  for name in names.split():
    value = getattr(config, name)
    require(value is None or value > 0, config, name, 'above 0')


def fraction(config: Any, names: str) -> None:
  """Each of the fields must be in [0, 1)."""
  for name in names.split():
    require(0 <= getattr(config, name) < 1, config, name, 'in [0, 1)')
