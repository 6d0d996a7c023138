"""Experiment files and `--config.FIELD=VALUE` on the command line.

The values are parsed by ml_collections, so what works in other projects works
here; the names are checked before, for a sentence instead of a traceback.
"""

import dataclasses
import pathlib
import runpy
import sys
import typing

from absl import flags
from ml_collections import ConfigDict, config_flags

from txl_jax.config import Config
from txl_jax.conversion import check_names, default_config, optional_type
from txl_jax.errors import InputError

PREFIX = '--config.'


def load_experiment(argument: str) -> ConfigDict:
  """What `get_config` of an experiment file returns.

  As of a script that Python runs, the file's folder comes first where it looks
  for modules: an experiment may import another one beside it.

  Args:
    argument: `FILE.py`, or `FILE.py:VARIANT` for `get_config('VARIANT')`.

  Raises:
    InputError: if there is no such file or variant (where the file lists its
      VARIANTS), or it does not return a ConfigDict.
  """
  name, *variant = argument.split(':', 1)
  path = pathlib.Path(name)
  if not path.is_file():
    raise InputError(f'--config: there is no file {path}')
  folder = str(path.parent.absolute())
  sys.path.insert(0, folder)
  try:
    module = runpy.run_path(name)
    if variant and variant[0] not in module.get('VARIANTS', variant):
      raise InputError(
        f'--config: {path} has no variant {variant[0]!r}, it has '
        + ', '.join(module['VARIANTS'])
      )
    values = module['get_config'](*variant)
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f'--config: {path} cannot be loaded: {type(error).__name__}: {error}'
    ) from error
  finally:
    sys.path.remove(folder)
  if not isinstance(values, ConfigDict):
    raise InputError(
      f'--config: get_config of {path} must return a ConfigDict, found a '
      f'{type(values).__name__}'
    )
  return values


def apply_overrides(values: ConfigDict, arguments: list[str]) -> ConfigDict:
  """The configuration with `--config.SECTION.FIELD=VALUE` applied.

  Raises:
    InputError: for another argument, an unknown field or an unreadable value.
  """
  arguments = _joined(arguments)
  for argument in arguments:
    _check(argument)
  # Of two settings of a field the last counts.
  arguments = list({_field(a): a for a in arguments}.values())
  to_none = [a for a in arguments if _sets_none(a)]
  # ml_collections cannot set an optional field back to None.
  rest = ['txl', *(a for a in arguments if a not in to_none)]
  holder = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', values, flag_values=holder, sys_argv=rest
    )
    holder(rest)
  except KeyError as error:
    raise InputError(
      f'config has no {error}: get_config must start from '
      'txl_jax.conversion.default_config()'
    ) from error
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(_unreadable(arguments, str(error))) from error
  for argument in to_none:
    section, name = _field(argument)
    holder.config[section][name] = None
  return holder.config


def model_fields(arguments: list[str]) -> dict[str, typing.Any]:
  """The fields that arguments `--config.model.FIELD=VALUE` set, and no others.

  Raises:
    InputError: for another argument, an unknown field or an unreadable value.
  """
  arguments = _joined(arguments)
  values = apply_overrides(default_config(), arguments)
  for section, _ in map(_field, arguments):
    if section != 'model':
      raise InputError(f'config.{section} is not part of a model')
  return {name: values.model[name] for _, name in map(_field, arguments)}


def field_names() -> str:
  """All fields by section, for `--help`."""
  return '\n'.join(
    f'  config.{section}: ' + ', '.join(typing.get_type_hints(cls))
    for section, cls in typing.get_type_hints(Config).items()
  )


def _joined(arguments: list[str]) -> list[str]:
  """`--config.x.y`, `value` as one argument, `--config.x.y=value`."""
  result = []
  for argument in arguments:
    waiting = result and result[-1].startswith(PREFIX) and '=' not in result[-1]
    if waiting and not argument.startswith('--'):
      result[-1] += f'={argument}'
    else:
      result.append(argument)
  return result


def _field(argument: str) -> tuple[str, str]:
  name, _, _ = argument.removeprefix(PREFIX).partition('=')
  section, _, field = name.partition('.')
  return section, field


def _check(argument: str) -> None:
  if not argument.startswith(PREFIX) or '=' not in argument:
    raise InputError(
      f'{argument!r} is no argument of this command; fields are set with '
      '--config.SECTION.FIELD=VALUE'
    )
  section, field = _field(argument)
  check_names([section], _sections(), 'config')
  if not field:
    raise InputError(f'config.{section} is a section, name a field of it')
  fields = [f.name for f in dataclasses.fields(_sections()[section])]
  check_names([field], fields, f'config.{section}')


def _unreadable(arguments: list[str], error: str) -> str:
  """A sentence about the argument that an error of absl speaks of."""
  for argument in arguments:
    if error.startswith(f'flag {argument}: '):
      value = argument.partition('=')[2]
      annotation = _annotation(argument)
      expected = getattr(annotation, '__name__', annotation)
      field = '.'.join(_field(argument))
      return f'config.{field} must be of type {expected}, found {value!r}'
  return error


def _annotation(argument: str) -> typing.Any:
  section, field = _field(argument)
  return typing.get_type_hints(_sections()[section])[field]


def _sets_none(argument: str) -> bool:
  annotation, value = _annotation(argument), argument.partition('=')[2]
  return optional_type(annotation) is not None and value.lower() == 'none'


def _sections() -> dict[str, type]:
  return typing.get_type_hints(Config)
