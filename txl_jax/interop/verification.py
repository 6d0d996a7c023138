"""Losses of a few fixed tokens, kept with an export to check it later."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.interop.imported import read_json
from txl_jax.interop.pretrained import load_pretrained
from txl_jax.model.functional import project_memory, score
from txl_jax.model.memory import init_memory

NAME = 'verification.json'
SEGMENTS, LENGTH = 4, 16
# Nats, in float32: devices add up in different orders.
TOLERANCE = 1e-4


def write_verification(
  directory: str | os.PathLike, config: ModelConfig, params: dict
) -> np.ndarray:
  """Scores fixed tokens, and writes them and their losses into an export.

  Args:
    directory: of the export.
    config: the model.
    params: its parameters.

  Returns:
    The losses [S * T], natural log.
  """
  # Spread over the whole vocabulary, frequent and rare.
  n = np.arange(SEGMENTS * LENGTH + 1, dtype=np.int64)
  tokens = (n * n * 7919 + n * 104729) % config.vocab_size
  losses = _score(config, params, tokens)
  values = {'tokens': tokens.tolist(), 'losses': losses.tolist()}
  path = pathlib.Path(directory) / NAME
  path.write_text(json.dumps(values) + '\n')
  return losses


def check_export(directory: str | os.PathLike) -> float:
  """Scores an export's fixed tokens again.

  Args:
    directory: of an export that `txl convert` has written.

  Returns:
    The largest difference of a token's loss, in nats.

  Raises:
    InputError: if the export or its verification cannot be read, or if a loss
      differs by more than TOLERANCE.
  """
  path = pathlib.Path(directory) / NAME
  stored = read_json(path)
  try:
    tokens = np.array(stored['tokens'], np.int64)
    expected = np.array(stored['losses'], np.float64)
    fits = tokens.shape == (SEGMENTS * LENGTH + 1,)
    fits = fits and expected.shape == (SEGMENTS * LENGTH,)
  except (KeyError, TypeError, ValueError):
    fits = False
  if not fits:
    raise InputError(
      f'{path} must hold {SEGMENTS * LENGTH + 1} tokens and the losses of all '
      'but the first; `txl convert` writes it'
    )
  config, params, _ = load_pretrained(directory)
  losses = _score(config, params, tokens)
  distances = np.nan_to_num(np.abs(losses - expected), nan=np.inf)
  worst, difference = int(distances.argmax()), float(distances.max())
  if difference > TOLERANCE:
    raise InputError(
      f'{directory}: the loss of token {worst + 1} is {losses[worst]:.6f}, '
      f'expected {expected[worst]:.6f}: the model is not what it was'
    )
  return difference


def _score(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
  """Losses [S * T] with the memory carried, in full float32."""
  config = dataclasses.replace(config, dtype='float32')
  losses = []
  with jax.default_matmul_precision('highest'):
    memory = project_memory(config, params, init_memory(config, 1))
    # One by one: a scan over segments would hold a copy of the parameters.
    for i in range(0, SEGMENTS * LENGTH, LENGTH):
      window = tokens[None, i : i + LENGTH + 1]
      nll_BT, memory = score(
        config, params, window[:, :-1], window[:, 1:], memory
      )
      losses.append(np.asarray(nll_BT, np.float64)[0])
  return np.concatenate(losses)
