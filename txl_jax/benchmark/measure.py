"""A measurement of training: from configurations to what is reported."""

import time
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from txl_jax.benchmark import lines
from txl_jax.benchmark.ceiling import matrix_product_flops
from txl_jax.benchmark.training import Subject, time_queued, time_steps
from txl_jax.config import Config, ModelConfig
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel.mesh import make_mesh

Say = Callable[[str], None]


def measure_training(
  configs: list[Config],
  steps: int,
  *,
  mesh: Mesh | None = None,
  breakdown: bool,
  say: Say,
) -> Iterator[dict]:
  """Measures training steps of several configurations in turns.

  Args:
    configs: what is compared; most often there is one.
    steps: to measure of each.
    mesh: None = as the first configuration says, of all devices.
    breakdown: whether to trace where the time goes.
    say: receives lines of progress.

  Yields:
    For each configuration the fields of a line, as docs/performance.md
    explains them.

  Raises:
    InputError: if the rows do not divide among the devices, or do not fit into
      their memory.
  """
  mesh = mesh or make_mesh(configs[0].mesh)
  subjects = [_start(config, mesh, say) for config in configs]
  say(f'measuring {steps} steps, each waited for, and as many queued')
  seconds = time_steps(subjects, steps)
  queued = [time_queued(subject, steps) for subject in subjects]
  # The allocator knows one peak for the whole process.
  peak = lines.peak_memory(mesh) if len(configs) == 1 else None
  ceiling = matrix_product_flops(mesh.devices.flat[0])
  for subject, taken, one in zip(subjects, seconds, queued):
    line = {
      **_sizes(subject),
      **lines.times(taken, parts=subject.updates),
      'milliseconds_queued': 1e3 * one / subject.updates,
      **_speeds(subject, one / subject.updates, mesh, ceiling),
      'ratio': queued[0] / one,
    }
    line = lines.rounded(line)
    line['peak_memory_bytes'] = peak
    line['step_memory_bytes'] = subject.step_memory()
    line |= {'mesh': dict(mesh.shape), **lines.machine(mesh)}
    if breakdown:
      name = implementation(subject.config.model)
      line['breakdown'] = lines.time_by_part(subject, name, say)
    yield line


def _start(config: Config, mesh: Mesh, say: Say) -> Subject:
  """A compiled step whose memory is full."""
  name, began = implementation(config.model), time.monotonic()
  subject = Subject(config, mesh)
  say(f'{name}: compiled in {time.monotonic() - began:.0f} s')
  calls = subject.warm_up()
  say(f'{name}: memory filled in {calls * subject.updates} steps')
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


def _speeds(
  subject: Subject, seconds: float, mesh: Mesh, ceiling: float
) -> dict:
  """Of all devices together, and how well they are used.

  Args:
    subject: what was measured.
    seconds: of a step.
    mesh: the devices.
    ceiling: operations a second of a matrix product on one of them.
  """
  train = subject.config.train
  tokens_per_second = subject.tokens / seconds
  flops = tokens_per_second * training_operations_per_token(
    subject.config.model,
    batch_size=train.batch_size,
    segment_length=train.segment_length,
  )
  return {
    'tokens_per_second': tokens_per_second,
    **lines.utilisation(flops, mesh, ceiling),
  }
