"""Fields that the lines of all measurements share."""

import statistics
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.breakdown import breakdown, traceable
from txl_jax.parallel import chips


def times(seconds: list[float], parts: int = 1) -> dict:
  """Milliseconds of what each time is of, or of one of its equal parts."""
  scale = 1e3 / parts
  return {
    'steps': len(seconds),
    'milliseconds': scale * statistics.median(seconds),
    'milliseconds_fastest': scale * min(seconds),
    'milliseconds_slowest': scale * max(seconds),
  }


def utilisation(flops: float, mesh: Mesh, ceiling: float) -> dict:
  """How well the devices are used.

  Args:
    flops: operations a second of all devices together.
    mesh: the devices.
    ceiling: operations a second of a matrix product on one of them.
  """
  chip = chips.published(mesh.devices.flat[0].device_kind)
  return {
    'model_tflops': flops / 1e12,
    'matrix_product_tflops': ceiling / 1e12,
    'utilisation': flops / (ceiling * mesh.size),
    'utilisation_of_peak': chip and flops / (chip.flops * mesh.size),
  }


def peak_memory(mesh: Mesh) -> int | None:
  """Bytes of the fullest device at its fullest; None where nobody counts."""
  stats = [device.memory_stats() or {} for device in mesh.devices.flat]
  return max(found.get('peak_bytes_in_use', 0) for found in stats) or None


def machine(mesh: Mesh) -> dict:
  """What was measured on."""
  return {
    'devices': mesh.size,
    'device_kind': mesh.devices.flat[0].device_kind,
    'jax': jax.__version__,
  }


def rounded(line: dict) -> dict:
  """Numbers with five digits: more would be noise."""
  return {
    name: float(f'{value:.5g}') if isinstance(value, float) else value
    for name, value in line.items()
  }


def time_by_part(
  subject: Any, name: str, say: Callable[[str], None]
) -> dict[str, float]:
  """Traces three steps; also says what is found.

  Args:
    subject: runs `compiled` so many times as `run` is told; left behind with
      a program that can be traced.
    name: of what is measured.
    say: receives lines.
  """
  say(f'{name}: tracing')
  subject.compiled = traceable(subject.compile, subject.compiled)
  subject.run(1)
  shares = breakdown(lambda: subject.run(3), subject.compiled.as_text())
  say(f'{name}: time by part')
  for part, share in shares.items():
    say(f'  {part:<13}{share:7.1%}')
  return shares
