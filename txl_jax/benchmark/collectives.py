"""What the devices of a compiled program send to each other."""

import dataclasses
import math
import re
from collections import defaultdict

import numpy as np

from txl_jax.benchmark.hlo import Instruction, Program

_KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
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
  found = defaultdict(lambda: [0.0, 0.0, 0])
  for each, times in Program(text).runs():
    kind = each.opcode.removesuffix('-start')
    if kind not in _KINDS:
      continue
    group = _group(each.line, mesh_shape)
    payload = _payload(each, kind, len(group))
    total = found[kind, _axes(group, mesh_shape)]
    total[0] += times * payload
    total[1] += times * payload * _share_sent(kind, len(group))
    total[2] += times
  exchanges = [Collective(*key, *total) for key, total in found.items()]
  return sorted(exchanges, key=lambda exchange: -exchange.sent)


def collective_names(text: str) -> set[str]:
  """Names of the instructions that exchange, in the text of a program.

  Of an asynchronous exchange both its start and its end, at which a device may
  wait.
  """
  program = Program(text)
  wrapped = {
    name
    for name, own in program.computations.items()
    if any(map(_exchanges, own))
  }
  return {
    name.removeprefix('%')
    for name, each in program.named.items()
    if _exchanges(each)
    or (each.opcode == 'async-start' and wrapped.intersection(each.callees()))
  }


def named_as_collective(name: str) -> bool:
  """Whether an instruction is named as XLA names collectives.

  A GPU's profiler may know one by a name from before it was made asynchronous,
  which the text of the program does not have.
  """
  return name.startswith(_KINDS)


def _exchanges(each: Instruction) -> bool:
  kind = each.opcode.removesuffix('-start').removesuffix('-done')
  return kind in _KINDS


def _payload(each: Instruction, kind: str, group_size: int) -> float:
  sizes = [array.size for array in each.arrays]
  begun = each.opcode.endswith('-start')
  if begun and kind in ('all-gather', 'collective-permute'):
    return max(sizes)  # the operand stands beside the result
  return sum(sizes) * (group_size if kind == 'reduce-scatter' else 1)


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
