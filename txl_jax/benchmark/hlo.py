"""The text of a compiled program: what runs, and how often.

No interface of XLA tells it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

_ARRAY = re.compile(r'\b(pred|bf16|[a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?')
_INSTRUCTION = re.compile(
  r'\s+(ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)(\(.*)'
)
_NAME = re.compile(r'%[\w.\-]+')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'condition=(%[\w.\-]+)')
_BELOW = re.compile(r'ROOT .* compare\(.*, (%[\w.\-]+)\), direction=LT')
_CALLED = re.compile(
  r'(body|calls|to_apply|true_computation|false_computation|'
  r'branch_computations)=(\{[^}]*\}|%[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Array:
  """An array that an instruction makes.

  Attributes:
    size: bytes, without what the layout pads.
    in_main_memory: rather than in one on the chip.
  """

  size: float
  in_main_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  is_root: bool
  line: str

  def callees(self) -> list[str]:
    """The computations that it calls; not the condition of a loop."""
    called = (names for _, names in _CALLED.findall(self.line))
    return [name for names in called for name in _NAME.findall(names)]


class Program:
  """A compiled program.

  Attributes:
    computations: the instructions of each, by its name.
    named: each instruction by its name.
  """

  def __init__(self, text: str):
    """Reads it, as `Compiled.as_text` gives it."""
    self.computations: dict[str, list[Instruction]] = {}
    self._entry = ''
    own = None
    for line in text.splitlines():
      if line.endswith('{') and not line.startswith((' ', 'HloModule')):
        name = line.removeprefix('ENTRY ').split()[0]
        own = self.computations[name] = []
        if line.startswith('ENTRY'):
          self._entry = name
      elif own is not None and (match := _INSTRUCTION.match(line)):
        own.append(_instruction(match))
    self.named = {
      each.name: each for own in self.computations.values() for each in own
    }

  def runs(
    self, enters: Callable[[Instruction], bool] = lambda instruction: True
  ) -> Iterator[tuple[Instruction, int]]:
    """Each instruction that runs, and how many times.

    A loop that does not say how often it runs counts once, and of branches
    each does.

    Args:
      enters: whether to go into what an instruction calls.
    """
    yield from self._runs(self._entry, 1, enters)

  def _runs(
    self, name: str, times: int, enters: Callable[[Instruction], bool]
  ) -> Iterator[tuple[Instruction, int]]:
    for each in self.computations.get(name, ()):
      yield each, times
      if enters(each):
        inner = self._trips(each.line) if each.opcode == 'while' else 1
        for callee in each.callees():
          yield from self._runs(callee, times * inner, enters)

  def _trips(self, line: str) -> int:
    """How often a loop runs, or 1 if it does not say.

    The compiler of TPUs leaves it to the condition: JAX counts up from 0.
    """
    if known := _TRIPS.search(line):
      return int(known[1])
    condition = _CONDITION.search(line)
    own = self.computations.get(condition[1], ()) if condition else ()
    for below in filter(None, (_BELOW.search(each.line) for each in own)):
      limit = next((each for each in own if each.name == below[1]), None)
      if limit and (found := re.search(r' constant\((\d+)\)', limit.line)):
        return int(found[1])
    return 1


def _instruction(match: re.Match) -> Instruction:
  root, name, made, opcode, rest = match.groups()
  return Instruction(
    name=name,
    opcode=opcode,
    arrays=tuple(_array(*found) for found in _ARRAY.findall(made)),
    operands=tuple(_NAME.findall(_in_parentheses(rest))),
    is_root=bool(root),
    line=match.string,
  )


def _in_parentheses(text: str) -> str:
  """Up to the one that closes the first."""
  depth = 0
  for end, letter in enumerate(text):
    depth += {'(': 1, ')': -1}.get(letter, 0)
    if not depth:
      return text[:end]
  return text


def _array(dtype: str, shape: str, layout: str) -> Array:
  count = math.prod(map(int, filter(None, shape.split(','))))
  # S(n) in a layout is another memory than the main one.
  return Array(count * _item_bytes(dtype), in_main_memory='S(' not in layout)


def _item_bytes(dtype: str) -> float:
  if dtype == 'pred':
    return 1
  return int(re.sub(r'\D', ' ', dtype).split()[0]) / 8
