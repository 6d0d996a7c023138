"""A measurement of training: from configurations to what is reported."""

import statistics
import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.breakdown import breakdown as breakdown_of
from txl_jax.benchmark.ceiling import matrix_product_flops
from txl_jax.benchmark.training import Subject, time_steps
from txl_jax.config import Config, ModelConfig
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel import chips
from txl_jax.parallel.mesh import make_mesh

Say = Callable[[str], None]


def measure_training(
  configs: list[Config], steps: int, *, breakdown: bool, say: Say
) -> Iterator[dict]:
  """Measures training steps of several configurations in turns.

  Args:
    configs: what is compared; most often there is one.
    steps: to measure of each.
    breakdown: whether to trace where the time goes.
    say: receives lines of progress.

  Yields:
    For each configuration the fields of a line, as docs/performance.md
    explains them.

  Raises:
    InputError: if the rows do not divide among the devices, or do not fit into
      their memory.
  """
  mesh = make_mesh(configs[0].mesh)
  subjects = [_start(config, mesh, say) for config in configs]
  say(f'measuring {steps} steps')
  seconds = time_steps(subjects, steps)
  # The allocator knows one peak for the whole process.
  peak = _peak_memory(mesh) if len(configs) == 1 else None
  ceiling = matrix_product_flops(mesh.devices.flat[0])
  for subject, taken in zip(subjects, seconds):
    line = {
      **_sizes(subject),
      **_times(taken),
      **_speeds(subject, taken, mesh, ceiling),
      'ratio': statistics.median(seconds[0]) / statistics.median(taken),
    }
    line = {name: _rounded(value) for name, value in line.items()}
    line['peak_memory_bytes'] = peak
    line['step_memory_bytes'] = subject.step_memory()
    line |= _machine(mesh)
    if breakdown:
      line['breakdown'] = _breakdown(subject, say)
    yield line


def _start(config: Config, mesh: Mesh, say: Say) -> Subject:
  """A compiled step whose memory is full."""
  name, began = implementation(config.model), time.monotonic()
  subject = Subject(config, mesh)
  say(f'{name}: compiled in {time.monotonic() - began:.0f} s')
  say(f'{name}: memory filled in {subject.warm_up()} steps')
  return subject


def implementation(model: ModelConfig) -> str:
  """Of the attention; models without the choice have one."""
  return getattr(model, 'attention_implementation', 'reference')


def _sizes(subject: Subject) -> dict:
  model, train = subject.config.model, subject.config.train
  return {
    'implementation': implementation(model),
    'dtype': model.dtype,
    'batch': train.batch_size,
    'segment': train.segment_length,
    'memory': model.memory_length,
    'parameters': subject.parameters,
  }


def _times(seconds: list[float]) -> dict:
  return {
    'steps': len(seconds),
    'milliseconds': 1e3 * statistics.median(seconds),
    'milliseconds_fastest': 1e3 * min(seconds),
    'milliseconds_slowest': 1e3 * max(seconds),
  }


def _speeds(
  subject: Subject, seconds: list[float], mesh: Mesh, ceiling: float
) -> dict:
  """Of all devices together, and how well they are used.

  Args:
    subject: what was measured.
    seconds: of each step.
    mesh: the devices.
    ceiling: operations a second of a matrix product on one of them.
  """
  train = subject.config.train
  tokens_per_second = subject.tokens / statistics.median(seconds)
  flops = tokens_per_second * training_operations_per_token(
    subject.config.model,
    batch_size=train.batch_size,
    segment_length=train.segment_length,
  )
  chip = chips.published(mesh.devices.flat[0].device_kind)
  return {
    'tokens_per_second': tokens_per_second,
    'model_tflops': flops / 1e12,
    'matrix_product_tflops': ceiling / 1e12,
    'utilisation': flops / (ceiling * mesh.size),
    'utilisation_of_peak': chip and flops / (chip.flops * mesh.size),
  }


def _machine(mesh: Mesh) -> dict:
  return {
    'devices': mesh.size,
    'device_kind': mesh.devices.flat[0].device_kind,
    'jax': jax.__version__,
  }


def _peak_memory(mesh: Mesh) -> int | None:
  """Bytes of the fullest device at its fullest; None where nobody counts."""
  stats = [device.memory_stats() or {} for device in mesh.devices.flat]
  return max(found.get('peak_bytes_in_use', 0) for found in stats) or None


def _breakdown(subject: Subject, say: Say) -> dict[str, float]:
  shares = breakdown_of(lambda: subject.run(3), subject.compiled.as_text())
  say(f'{implementation(subject.config.model)}: time by part')
  for part, share in shares.items():
    say(f'  {part:<13}{share:7.1%}')
  return shares


def _rounded(value: object) -> object:
  """Five digits: more would be noise."""
  return float(f'{value:.5g}') if isinstance(value, float) else value
