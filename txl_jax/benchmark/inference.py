"""Measurements of evaluation and of generation: what is reported of them."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import jax

from txl_jax.benchmark import lines
from txl_jax.benchmark.ceiling import matrix_product_flops
from txl_jax.benchmark.evaluation import SEGMENTS_PER_CALL, Reader
from txl_jax.benchmark.generation import Generation
from txl_jax.benchmark.training import time_steps
from txl_jax.config import Config
from txl_jax.errors import InputError
from txl_jax.generation.decode import MOST_STEPS
from txl_jax.model.operations import operations_per_token
from txl_jax.parallel.mesh import make_mesh

Say = Callable[[str], None]


@contextlib.contextmanager
def memory_errors(options: str = '--batch or --memory') -> Iterator[None]:
  """Turns XLA's error about too little memory into a sentence."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise InputError(
      f'this does not fit into the memory of the devices: lower {options}'
    ) from error


@memory_errors()
def measure_evaluation(
  config: Config, steps: int, *, breakdown: bool, say: Say
) -> dict:
  """Measures the evaluation of a text without end.

  Args:
    config: the experiment; `eval` has rows, segment and memory.
    steps: calls to measure, of `SEGMENTS_PER_CALL` segments each.
    breakdown: whether to trace where the time goes.
    say: receives lines of progress.

  Returns:
    The fields of a line, as docs/performance.md explains them.

  Raises:
    InputError: as `Reader`, or if the devices have too little memory.
  """
  mesh, settings, began = make_mesh(), config.eval, time.monotonic()
  reader = Reader(config.model, settings, mesh)
  say(f'compiled in {time.monotonic() - began:.0f} s')
  n_segments = reader.fill() * SEGMENTS_PER_CALL
  say(f'memory filled in {n_segments} segments; measuring {steps} calls')
  (seconds,) = time_steps([reader], steps)
  tokens_per_second = reader.tokens / statistics.median(seconds)
  count = operations_per_token(
    reader.model,
    batch_size=settings.batch_size,
    segment_length=settings.segment_length,
  )
  # Each token is projected once, and the table of positions once for all.
  flops = tokens_per_second * (count.forward - count.memory - count.positions)
  ceiling = matrix_product_flops(mesh.devices.flat[0])
  line = {
    'dtype': config.model.dtype,
    'batch': settings.batch_size,
    'segment': settings.segment_length,
    'memory': settings.memory_length,
    'parameters': sum(x.size for x in jax.tree.leaves(reader.params)),
    **lines.times(seconds, SEGMENTS_PER_CALL),
    'tokens_per_second': tokens_per_second,
    **lines.utilisation(flops, mesh, ceiling),
    'peak_memory_bytes': lines.peak_memory(mesh),
    **lines.machine(mesh),
  }
  return lines.rounded(line) | _breakdown(breakdown, 'evaluation', reader, say)


@memory_errors()
def measure_generation(
  config: Config, n_rows: int, steps: int, *, breakdown: bool, say: Say
) -> dict:
  """Measures generation on one device.

  Args:
    config: the experiment; `eval` has the memory, `sample` how is drawn.
    n_rows: texts that are written at once.
    steps: blocks of `MOST_STEPS` tokens to measure.
    breakdown: whether to trace where the time goes.
    say: receives lines of progress.

  Returns:
    The fields of a line, as docs/performance.md explains them.

  Raises:
    InputError: for a model that cannot generate, or too little memory.
  """
  mesh, began = make_mesh(devices=jax.devices()[:1]), time.monotonic()
  generation = Generation(config, n_rows, mesh)
  say(f'compiled and filled the memory in {time.monotonic() - began:.0f} s')
  generation.run(1)
  say(f'measuring {steps} blocks of {MOST_STEPS} tokens')
  (seconds,) = time_steps([generation], steps)
  of_a_row = MOST_STEPS / statistics.median(seconds)
  sample = config.sample
  line = {
    'dtype': config.model.dtype,
    'batch': n_rows,
    'memory': config.eval.memory_length,
    'temperature': sample.temperature,
    'top_k': sample.top_k,
    'top_p': sample.top_p,
    'min_p': sample.min_p,
    'parameters': generation.parameters,
    **lines.times(seconds, MOST_STEPS),
    'tokens_per_second': of_a_row * n_rows,
    'tokens_per_second_of_a_row': of_a_row,
    'peak_memory_bytes': lines.peak_memory(mesh),
    **lines.machine(mesh),
  }
  return lines.rounded(line) | _breakdown(
    breakdown, 'generation', generation, say
  )


def _breakdown(
  wanted: bool, name: str, subject: Reader | Generation, say: Say
) -> dict:
  """The field `breakdown`, if it is wanted."""
  if not wanted:
    return {}
  return {'breakdown': lines.time_by_part(subject, name, say)}
