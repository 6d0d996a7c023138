"""What an importer finds."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.model.functional import init_params
from txl_jax.model.memory import Memory


@dataclasses.dataclass(frozen=True)
class Imported:
  """A model of another implementation.

  Attributes:
    form: the format that it was found in.
    config: the model.
    params: its parameters, in float32.
    vocabulary: what its token ids mean; None if nothing tells.
    memory: of the training run, if the checkpoint has it.
    step: of the training run, if the checkpoint has it.
  """

  form: str
  config: ModelConfig
  params: dict
  vocabulary: Vocabulary | None = None
  memory: Memory | None = None
  step: int | None = None


def with_fields(config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
  """The configuration with the fields that the user sets."""
  return dataclasses.replace(config, **given)


def refitted(
  config: ModelConfig, params: dict, given: Mapping[str, Any]
) -> ModelConfig:
  """The configuration of known parameters, with the fields of the user.

  Raises:
    InputError: if the parameters are not those of such a model.
  """
  changed = with_fields(config, given)
  shapes = jax.eval_shape(lambda: init_params(changed, jax.random.key(0)))
  if jax.tree.map(np.shape, params) != jax.tree.map(lambda x: x.shape, shapes):
    fields = ', '.join(f'config.model.{name}={v}' for name, v in given.items())
    raise InputError(f'the parameters are not those of a model with {fields}')
  return changed


def read_json(path: pathlib.Path) -> dict:
  """An object in a JSON file; {} if there is no such file.

  Raises:
    InputError: if it is something else.
  """
  if not path.is_file():
    return {}
  try:
    values = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f'{path} is not JSON: {error}') from error
  if not isinstance(values, dict):
    raise InputError(f'{path} must hold an object, found {values!r}')
  return values
