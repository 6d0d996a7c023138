"""Evaluation with memory against a model that recomputes its context.

The second is how a vanilla Transformer is evaluated: for each token a window of
all tokens that it may see is read anew (Dai et al. 2019, section 4.5, table 9).
Text and weights are random.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from txl_jax.benchmark import lines
from txl_jax.benchmark.evaluation import Reader
from txl_jax.benchmark.inference import memory_errors
from txl_jax.benchmark.training import time_steps
from txl_jax.config import Config, EvalConfig, ModelConfig
from txl_jax.evaluation.windows import score_windows, window_model
from txl_jax.model.functional import init_params
from txl_jax.parallel import mesh as mesh_lib

# Slow-down by attention length, as published.
PUBLISHED = {800: 363, 1800: 773, 2800: 1409, 3800: 1874}
# Windows that take turns.
N_BATCHES = 4


class WindowReader:
  """A model that reads a whole window for each token.

  Attributes:
    params: random.
    tokens: that a call scores.
  """

  def __init__(
    self, model: ModelConfig, length: int, batch_size: int, mesh: Mesh
  ):
    """Draws parameters and windows.

    Args:
      model: its memory is taken away; absolute positions become as many as the
        window is long.
      length: of a window.
      batch_size: windows in a call.
      mesh: they are divided among its devices.

    Raises:
      InputError: if they do not divide among the devices.
    """
    mesh_lib.check_rows(mesh, batch_size, '--batch')
    if model.absolute_positions:
      model = dataclasses.replace(model, n_positions=length)
    self._model, self._mesh = window_model(model), mesh
    self.tokens = batch_size
    whole = mesh_lib.replicated(mesh)
    self.params = jax.jit(
      lambda key: init_params(self._model, key), out_shardings=whole
    )(jax.random.key(0))
    batches = [
      _windows(model.vocab_size, (1, batch_size, length), seed)
      for seed in range(N_BATCHES)
    ]
    places = mesh_lib.by_rows(mesh, batches[0])
    batches = [jax.device_put(batch, places) for batch in batches]
    self._batches = itertools.cycle(batches)

  def run(self, calls: int) -> None:
    """Reads so many batches of windows, then waits for the last."""
    for _ in range(calls):
      with mesh_lib.sharded(self._mesh):
        nll_B = score_windows(
          self._model, self._mesh, self.params, *next(self._batches)
        )
    jax.block_until_ready(nll_B)


def _windows(
  vocab_size: int, shape: tuple[int, int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids, no starts, and targets."""
  draw = np.random.default_rng(seed)
  ids = draw.integers(0, vocab_size, shape, np.int32)
  targets = draw.integers(0, vocab_size, shape[:2], np.int32)
  return ids, np.zeros(shape, np.bool_), targets


def measure_slowdown(
  config: Config,
  vanilla: ModelConfig,
  lengths: list[int],
  *,
  batch_size: int,
  steps: int,
  say: Callable[[str], None],
) -> Iterator[dict]:
  """Measures both at each attention length.

  Args:
    config: the model with memory; `eval` has its segment and clamping.
    vanilla: the model that reads windows.
    lengths: tokens of memory, and of a window.
    batch_size: rows, and windows at once.
    steps: calls of each to measure.
    say: receives lines of progress.

  Yields:
    For each length the time per token of both, and their ratio.

  Raises:
    InputError: as `Reader`, or if the devices have too little memory.
  """
  mesh = mesh_lib.make_mesh()
  for length in lengths:
    with memory_errors('--batch or --lengths'):
      began = time.monotonic()
      ours = Reader(config.model, _settings(config, length, batch_size), mesh)
      ours.fill()
      ours_ms, ours_parameters = _per_token(ours, steps), _size(ours)
      del ours
      windows = WindowReader(vanilla, length, batch_size, mesh)
      windows.run(1)  # compiles
      windows_ms, parameters = _per_token(windows, steps), _size(windows)
      del windows
    line = {
      'attention_length': length,
      'milliseconds_per_token': ours_ms,
      'vanilla_milliseconds_per_token': windows_ms,
      'ratio': windows_ms / ours_ms,
    }
    line = lines.rounded(line) | {
      'published_ratio': PUBLISHED.get(length),
      'parameters': ours_parameters,
      'vanilla_parameters': parameters,
    }
    say(
      f'attention length {length:,}: {ours_ms:.4g} ms a token with memory, '
      f'{windows_ms:.4g} ms recomputing it, {line["ratio"]:,.0f} times '
      f'({time.monotonic() - began:.0f} s)'
    )
    yield line


def _settings(config: Config, length: int, batch_size: int) -> EvalConfig:
  return dataclasses.replace(
    config.eval,
    batch_size=batch_size,
    memory_length=length,
    attention_span=None,
    warmup_tokens=0,
    stride=None,
  )


def _per_token(reader: Reader | WindowReader, steps: int) -> float:
  """Milliseconds."""
  (seconds,) = time_steps([reader], steps)
  return 1e3 * statistics.median(seconds) / reader.tokens


def _size(reader: Reader | WindowReader) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(reader.params))
