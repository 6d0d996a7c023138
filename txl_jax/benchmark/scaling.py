"""The same training step on more and more devices, one count at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.measure import Say, measure_training
from txl_jax.config import Config
from txl_jax.errors import InputError
from txl_jax.parallel.mesh import check_rows, make_mesh

ROWS = 'config.train.batch_size'


def measure_scaling(
  config: Config,
  counts: list[int],
  steps: int,
  *,
  scaling: Literal['weak', 'strong'],
  breakdown: bool,
  say: Say,
) -> Iterator[dict]:
  """Measures training steps on the first devices, for each of some counts.

  Each is freed before the next begins.

  Args:
    config: the experiment; its mesh is made of those devices.
    counts: of devices, at least 1 and each once.
    steps: to measure on each.
    scaling: weak: the configured rows are those of the first count, and grow
      in proportion to it. strong: all have the configured rows.
    breakdown: whether to trace where the time goes.
    say: receives lines of progress.

  Yields:
    For each count the fields of a line, as docs/performance.md explains them.

  Raises:
    InputError: before anything is compiled, if there are fewer devices, or
      mesh or rows do not divide; later, if they have too little memory.
  """
  _check_counts(counts)
  weak = scaling == 'weak'
  plans = [_plan(config, n, counts[0] if weak else n) for n in counts]
  first = None
  for planned, mesh in plans:
    say(f'devices: {mesh.size}, rows: {planned.train.batch_size}')
    (line,) = measure_training(
      [planned], steps, mesh=mesh, breakdown=breakdown, say=say
    )
    if len(plans) > 1:
      line['peak_memory_bytes'] = None  # the allocator's is that of all
    speed = line['tokens_per_second'] / mesh.size
    first = first or speed
    efficiency = float(f'{speed / first:.5g}')
    yield {**line, 'scaling': scaling, 'efficiency': efficiency}


def _check_counts(counts: list[int]) -> None:
  """Raises an InputError for counts of which there are no such devices."""
  n_devices, most, least = jax.device_count(), max(counts), min(counts)
  if most > n_devices:
    kind = jax.devices()[0].device_kind
    raise InputError(
      f'--devices asks for {most}, but there are {n_devices} of the kind {kind}'
    )
  if jax.process_count() > 1 and least < n_devices:
    raise InputError(
      f'--devices must be {n_devices}, those of all {jax.process_count()} '
      f'processes, found {least}'
    )


def _plan(config: Config, count: int, base: int) -> tuple[Config, Mesh]:
  """What is measured on so many devices, and their mesh.

  Args:
    config: with the rows of `base` devices.
    count: of devices.
    base: of devices, another number or the same.

  Raises:
    InputError: if mesh or rows do not divide.
  """
  mesh = make_mesh(config.mesh, jax.devices()[:count])
  given = config.train.batch_size
  rows, left = divmod(given * count, base)
  if left:
    raise InputError(
      f'{ROWS} is {given} on {base} devices and would be '
      f'{given * count / base:.5g} on {count}, expected a whole number'
    )
  check_rows(mesh, rows, ROWS)
  train = dataclasses.replace(config.train, batch_size=rows)
  return dataclasses.replace(config, train=train), mesh
