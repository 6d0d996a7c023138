"""Where the time of a step goes, from a profiler trace."""

import collections
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from txl_jax.benchmark.parts import PARTS, REST, parts_by_instruction
from txl_jax.errors import InputError


class Event(NamedTuple):
  """An instruction that a device executed, times in nanoseconds."""

  instruction: str
  start: float
  duration: float


def traceable(
  lowered: jax.stages.Lowered, compiled: jax.stages.Compiled
) -> jax.stages.Compiled:
  """The same program, whose instructions a profiler sees one by one.

  XLA has a GPU record the kernels of a program once and replay them together;
  the profiler sees only that. So on a GPU it is compiled once more without,
  and idles more than it would.
  """
  if jax.default_backend() != 'gpu':
    return compiled
  # More kernels than any program has.
  return lowered.compile({'xla_gpu_graph_min_graph_size': 1_000_000})


def breakdown(step: Callable[[], None], hlo: str) -> dict[str, float]:
  """Traces steps and adds up their time by part.

  Args:
    step: runs some steps of a `traceable` program, without waiting in between.
    hlo: its text.

  Returns:
    For each part and `rest` its share of the device's busy time, and `idle`,
    the share of the elapsed time in which nothing ran on the device.

  Raises:
    InputError: if the trace has no instruction of the step.
  """
  with tempfile.TemporaryDirectory() as folder:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
      step()
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    parts = parts_by_instruction(hlo)
    devices = read_events(path, parts)
  if not devices:
    raise InputError('--breakdown: the profiler saw nothing of the step here')
  return summarise(devices, parts)


def read_events(path: pathlib.Path, known: Iterable[str]) -> list[list[Event]]:
  """The known instructions that a trace shows, for each device.

  Args:
    path: a `.xplane.pb` file.
    known: names of instructions.
  """
  known = set(known)
  with warnings.catch_warnings():
    # Of jaxlib's own about its types, on Python 3.12.
    warnings.simplefilter('ignore', DeprecationWarning)
    planes = {
      plane.name: [
        event
        for line in plane.lines
        for event in map(_event, line.events)
        if event.instruction in known
      ]
      for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    }
  on_device = [e for name, e in planes.items() if name.startswith('/device:')]
  # A CPU's instructions are on the host's plane.
  chosen = on_device if any(on_device) else planes.values()
  return [events for events in chosen if events]


def _event(event: Any) -> Event:
  """GPUs and CPUs have the instruction beside the event, TPUs as its name."""
  name = dict(event.stats).get('hlo_op') or event.name
  instruction = name.split(' ')[0].lstrip('%')
  return Event(instruction, event.start_ns, event.duration_ns)


def summarise(
  devices: list[list[Event]], parts: dict[str, str]
) -> dict[str, float]:
  """Shares of the parts in the busy time, and of idleness in the elapsed one.

  Args:
    devices: the events of each.
    parts: instruction -> part.
  """
  spent = collections.Counter()
  for event in (event for events in devices for event in events):
    spent[parts[event.instruction]] += event.duration
  total = sum(spent.values())
  shares = {part: spent[part] / total for part in (*PARTS, REST)}
  idle = sum(map(_idle, devices)) / len(devices)
  return {name: round(x, 4) for name, x in (shares | {'idle': idle}).items()}


def _idle(events: list[Event]) -> float:
  """Share of the time from first to last event in which none runs."""
  first = end = min(event.start for event in events)
  idle = 0.0
  for event in sorted(events, key=lambda event: event.start):
    idle += max(event.start - end, 0)
    end = max(end, event.start + event.duration)
  return idle / (end - first) if end > first else 0.0
