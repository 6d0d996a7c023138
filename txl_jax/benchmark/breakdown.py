"""Where the time of a step goes, from a profiler trace."""

import collections
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax

from txl_jax.benchmark.collectives import (
  collective_names,
  named_as_collective,
)
from txl_jax.benchmark.parts import PARTS, REST, parts_by_instruction
from txl_jax.errors import InputError

DEVICE = '/device:'  # how the planes of accelerators in a trace are named


class Event(NamedTuple):
  """An instruction that a device executed, times in nanoseconds."""

  instruction: str
  start: float
  duration: float


def traceable(
  compile_with: Callable[[dict], jax.stages.Compiled],
  compiled: jax.stages.Compiled,
) -> jax.stages.Compiled:
  """The same program, whose instructions a profiler sees one by one.

  XLA has a GPU record the kernels of a program once and replay them together;
  the profiler sees only that. So on a GPU it is compiled once more without,
  and idles more than it would.
  """
  if jax.default_backend() != 'gpu':
    return compiled
  # More kernels than any program has.
  return compile_with({'xla_gpu_graph_min_graph_size': 1_000_000})


def breakdown(step: Callable[[], None], hlo: str) -> dict[str, float]:
  """Traces steps and adds up their time by part.

  Args:
    step: runs some steps of a `traceable` program, without waiting in between.
    hlo: its text.

  Returns:
    What `summarise` finds.

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
  exchanges = collective_names(hlo)
  # What was traced and is not in the text is a collective by its name.
  traced = {event.instruction for events in devices for event in events}
  return summarise(devices, parts, exchanges | (traced - parts.keys()))


def read_events(path: pathlib.Path, known: Iterable[str]) -> list[list[Event]]:
  """The known instructions that a trace shows, for each device.

  And those that only their names tell to be collectives.

  Args:
    path: a `.xplane.pb` file.
    known: names of instructions.
  """
  known = set(known)
  found = collections.defaultdict(list)
  with warnings.catch_warnings():
    # Of jaxlib's own about its types, on Python 3.12.
    warnings.simplefilter('ignore', DeprecationWarning)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for each in (each for line in plane.lines for each in line.events):
        stats = dict(each.stats)
        event = _event(each, stats)
        name = event.instruction
        if name in known or named_as_collective(name):
          found[_device(plane.name, stats)].append(event)
  on_device = [e for name, e in found.items() if name.startswith(DEVICE)]
  # A CPU's instructions are on the host's plane.
  return on_device or list(found.values())


def _device(plane: str, stats: dict[str, Any]) -> str:
  """Accelerators have planes of their own, those of a CPU share the host's."""
  if plane.startswith(DEVICE):
    return plane
  return f'{plane} {stats.get("device_ordinal")}'


def _event(event: Any, stats: dict[str, Any]) -> Event:
  """GPUs and CPUs have the instruction beside the event, TPUs as its name."""
  name = stats.get('hlo_op') or event.name
  instruction = name.split(' ')[0].lstrip('%')
  return Event(instruction, event.start_ns, event.duration_ns)


def summarise(
  devices: list[list[Event]],
  parts: dict[str, str],
  exchanges: Collection[str] = (),
) -> dict[str, float]:
  """Shares of the parts in the busy time, and what devices wait for.

  Args:
    devices: the events of each.
    parts: instruction -> part.
    exchanges: the instructions that are collectives. They are in no part, so
      that parts are comparable with those of a single device.

  Returns:
    For each part and `rest` its share of the busy time of all devices. Then
    shares of the elapsed time, averaged over devices: `idle`, in which nothing
    runs on a device, and if there are several, `exchange`, in which a
    collective does, and `exposed`, in which nothing else does.
  """
  spent = collections.Counter()
  for event in (event for events in devices for event in events):
    if event.instruction not in exchanges:
      spent[parts[event.instruction]] += event.duration
  total = sum(spent.values())
  shares = {part: spent[part] / total for part in (*PARTS, REST)}
  times = [_times(events, exchanges) for events in devices]
  names = ('idle', 'exchange', 'exposed') if len(devices) > 1 else ('idle',)
  for name in names:
    shares[name] = sum(found[name] for found in times) / len(devices)
  return {name: round(share, 4) for name, share in shares.items()}


def _times(events: list[Event], exchanges: Collection[str]) -> dict[str, float]:
  """Shares of the time from first to last event of a device."""
  first = min(event.start for event in events)
  last = max(event.start + event.duration for event in events)
  sent = [event for event in events if event.instruction in exchanges]
  others = [event for event in events if event.instruction not in exchanges]
  idle = _gaps(events, first, last)
  elapsed = (last - first) or 1.0
  return {
    'idle': idle / elapsed,
    'exchange': 1 - _gaps(sent, first, last) / elapsed,
    'exposed': (_gaps(others, first, last) - idle) / elapsed,
  }


def _gaps(events: list[Event], first: float, last: float) -> float:
  """The time from first to last in which none of the events runs."""
  gaps, end = 0.0, first
  for event in sorted(events, key=lambda event: event.start):
    gaps += max(event.start - end, 0)
    end = max(end, event.start + event.duration)
  return gaps + last - end
