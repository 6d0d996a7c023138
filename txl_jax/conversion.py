"""Strict conversion between ml_collections ConfigDicts and `Config`.

An experiment file starts from `default_config()`, an `ml_collections`
ConfigDict with every field of `Config`, changes some, and returns it.
`from_config_dict` turns the result into the frozen `Config` that the rest of
the library receives; unknown fields and wrong types are errors.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from ml_collections import config_dict

from txl_jax.config import Config, ModelConfig
from txl_jax.errors import InputError


def default_config() -> config_dict.ConfigDict:
  """Every field with its default, locked: only existing fields can be set."""
  # 256 byte values and the token that begins a document.
  return to_config_dict(Config(ModelConfig(vocab_size=257)))


def to_config_dict(config: Config) -> config_dict.ConfigDict:
  """The inverse of `from_config_dict`."""
  result = config_dict.ConfigDict()
  for section in dataclasses.fields(config):
    result[section.name] = config_dict.ConfigDict()
    values = getattr(config, section.name)
    for name, annotation in typing.get_type_hints(type(values)).items():
      value = getattr(values, name)
      if optional_type(annotation):
        reference = config_dict.placeholder(optional_type(annotation))
        reference.set(value)
        value = reference
      result[section.name][name] = value
  return result.lock()


def from_config_dict(values: Any) -> Config:
  """Converts a ConfigDict, or nested dicts, strictly.

  Raises:
    InputError: naming the field, for an unknown or missing field, a wrong type
      or a value out of range.
  """
  sections = typing.get_type_hints(Config)
  _check_mapping(values, 'config')
  check_names(values, sections, 'config')
  if 'model' not in values:
    raise InputError('config.model is missing')
  return Config(
    **{
      name: dataclass_from_dict(sections[name], values[name], f'config.{name}')
      for name in values
    }
  )


def check_names(names: Any, known: Any, path: str) -> None:
  """Raises an InputError with the nearest known name for an unknown one."""
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
      hint = (
        f'did you mean {path}.{near[0]}?'
        if near
        else ('known are ' + ', '.join(known))
      )
      raise InputError(
        f'{path}.{name} is no field of the configuration; {hint}'
      )


def optional_type(annotation: Any) -> Any:
  """The type T of an annotation `T | None`; None for any other annotation."""
  if isinstance(annotation, types.UnionType):
    return next(a for a in get_args(annotation) if a is not type(None))
  return None


def dataclass_from_dict(cls: type, values: Any, path: str) -> Any:
  """One section, strictly.

  Args:
    cls: its dataclass.
    values: field -> value.
    path: stands before the field's name in error messages.
  """
  hints = typing.get_type_hints(cls)
  _check_mapping(values, path)
  check_names(values, hints, path)
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise InputError(f'{path}.{field.name} is missing and has no default')
  return cls(
    **{
      name: _typed(hints[name], values[name], f'{path}.{name}')
      for name in values
    }
  )


def _check_mapping(values: Any, path: str) -> None:
  if not isinstance(values, (Mapping, config_dict.ConfigDict)):
    raise InputError(f'{path} must hold named fields, found {values!r}')


def _typed(annotation: Any, value: Any, path: str) -> Any:
  """`value` as the annotated type; ints pass as floats, lists as tuples."""
  inner = optional_type(annotation)
  if inner is not None:
    return None if value is None else _typed(inner, value, path)
  if get_origin(annotation) is Literal:
    if value not in get_args(annotation):
      choices = ', '.join(map(repr, get_args(annotation)))
      raise InputError(f'{path} must be one of {choices}, found {value!r}')
    return value
  if get_origin(annotation) is tuple and isinstance(value, (tuple, list)):
    return _typed_tuple(annotation, value, path)
  if annotation is float and type(value) is int:
    return float(value)
  if type(value) is not annotation:
    name = getattr(annotation, '__name__', annotation)
    name = annotation if get_origin(annotation) is tuple else name
    raise InputError(
      f'{path} must be of type {name}, found {value!r} of type '
      f'{type(value).__name__}'
    )
  return value


def _typed_tuple(annotation: Any, value: Any, path: str) -> tuple:
  """Of any length (`tuple[T, ...]`), or of one type for each item."""
  inner = get_args(annotation)
  if inner[-1] is Ellipsis:
    inner = inner[:1] * len(value)
  if len(inner) != len(value):
    raise InputError(
      f'{path} must be of type {annotation}, found {value!r}, which has '
      f'{len(value)} items'
    )
  return tuple(_typed(type_, item, path) for type_, item in zip(inner, value))
