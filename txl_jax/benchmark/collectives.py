"""What the devices of a compiled program send to each other.

Read from the text of the program, since no interface of XLA tells it.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

_KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_COLLECTIVE = re.compile(rf' = (.*?) ({"|".join(_KINDS)})(-start)?\(')
_ARRAY = re.compile(r'\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\]')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'condition=(%[\w.\-]+)')
_BELOW = re.compile(r'ROOT .* compare\(.*, (%[\w.\-]+)\), direction=LT')
_CALLED = re.compile(
  r'(body|calls|to_apply|true_computation|false_computation|'
  r'branch_computations)=(\{[^}]*\}|%[\w.\-]+)'
)
_LISTED = re.compile(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}')
_IOTA = re.compile(
  r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_NAMED = re.compile(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange, or all of one kind over the same axes.

  Attributes:
    kind: 'all-reduce' and so on.
    axes: of the mesh, along which devices exchange.
    payload: bytes of the whole array, on each device.
    sent: bytes that a device sends, if it sends no more than it must.
    count: how many times.
  """

  kind: str
  axes: tuple[str, ...]
  payload: float
  sent: float
  count: int


def collectives(text: str, mesh_shape: dict[str, int]) -> list[Collective]:
  """The exchanges of one run of a compiled program, the largest first.

  Those inside a loop count as often as it runs, or once if that is not known
  beforehand.

  Args:
    text: of the compiled program, from `Compiled.as_text`.
    mesh_shape: the axes of the mesh and their sizes, in order.
  """
  computations, entry = _computations(text)
  found = defaultdict(lambda: [0.0, 0.0, 0])
  for line, times in _runs(computations, entry, 1):
    match = _COLLECTIVE.search(line)
    if match is None:
      continue
    group = _group(line, mesh_shape)
    payload = _payload(match, len(group))
    total = found[match[2], _axes(group, mesh_shape)]
    total[0] += times * payload
    total[1] += times * payload * _share_sent(match[2], len(group))
    total[2] += times
  exchanges = [Collective(*key, *total) for key, total in found.items()]
  return sorted(exchanges, key=lambda exchange: -exchange.sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation, and the name of the first to run."""
  found, name, entry = {}, None, ''
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith((' ', 'HloModule')):
      name = line.removeprefix('ENTRY ').split()[0]
      found[name] = []
      if line.startswith('ENTRY'):
        entry = name
    elif name is not None:
      found[name].append(line)
  return found, entry


def _runs(
  computations: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[str, int]]:
  """Each line that runs, and how many times."""
  for line in computations.get(name, ()):
    yield line, times
    for key, called in _CALLED.findall(line):
      inner = _trips(computations, line) if key == 'body' else 1
      for callee in re.findall(r'%[\w.\-]+', called):
        yield from _runs(computations, callee, times * inner)


def _trips(computations: dict[str, list[str]], line: str) -> int:
  """How often a loop runs, or 1 if it does not say.

  The compiler of TPUs leaves it to the condition: JAX counts up from 0.
  """
  if known := _TRIPS.search(line):
    return int(known[1])
  condition = _CONDITION.search(line)
  lines = computations.get(condition[1], ()) if condition else ()
  for below in filter(None, map(_BELOW.search, lines)):
    constant = re.compile(rf'{re.escape(below[1])} = .* constant\((\d+)\)')
    for found in filter(None, map(constant.search, lines)):
      return int(found[1])
  return 1


def _payload(match: re.Match, group_size: int) -> float:
  sizes = [
    math.prod(map(int, filter(None, shape.split(',')))) * _item_bytes(dtype)
    for dtype, shape in _ARRAY.findall(match[1])
  ]
  kind, begun = match[2], match[3]
  if begun and kind in ('all-gather', 'collective-permute'):
    return max(sizes)  # the operand stands beside the result
  return sum(sizes) * (group_size if kind == 'reduce-scatter' else 1)


def _item_bytes(dtype: str) -> float:
  if dtype == 'pred':
    return 1
  return int(re.sub(r'\D', ' ', dtype).split()[0]) / 8


def _share_sent(kind: str, group_size: int) -> float:
  """Of the payload; what the best of algorithms must send."""
  others = (group_size - 1) / group_size
  return {'all-reduce': 2 * others, 'collective-permute': 1.0}.get(kind, others)


def _group(line: str, mesh_shape: dict[str, int]) -> list[int]:
  """The first group of devices, numbered in the order of the mesh."""
  if match := _LISTED.search(line):
    return list(map(int, match[1].split(',')))
  if match := _IOTA.search(line):
    sizes = list(map(int, match[3].split(',')))
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if match[4]:
      ids = ids.transpose(list(map(int, match[4].split(','))))
    return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
  if match := _NAMED.search(line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    over = re.findall(r"'(\w+)'", match[2])
    ids = np.arange(math.prod(map(int, sizes.values())))
    ids = ids.reshape([int(size) for size in sizes.values()])
    whole = tuple(slice(None) if name in over else 0 for name in sizes)
    return ids[whole].flatten().tolist()
  return list(range(math.prod(mesh_shape.values())))  # all of them


def _axes(group: list[int], mesh_shape: dict[str, int]) -> tuple[str, ...]:
  places = np.unravel_index(group, tuple(mesh_shape.values()))
  return tuple(
    name for name, place in zip(mesh_shape, places) if len(set(place)) > 1
  )
