"""Which part of the model each instruction of a compiled step belongs to.

XLA keeps with an instruction the scopes that it was traced in: Linen's modules
and `jax.named_scope`. The outermost known one names the part.
"""

import collections
import re

PARTS = ('attention', 'feed_forward', 'softmax', 'embedding', 'optimizer')
REST = 'rest'
# They take the time of the instructions inside them, which count themselves.
_CONTAINERS = {'while', 'call', 'conditional'}
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(')
_SCOPES = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r'calls=%?([\w.-]+)')


def part_of(scopes: str) -> str:
  """The part that a path of scopes such as `jit(f)/layers/attention/dot` is in.

  The feed-forward's norm or the attention's are in `rest`, as all that is in no
  part.
  """
  names = re.split(r'[/();.]', scopes)
  return next((name for name in names if name in PARTS), REST)


def parts_by_instruction(hlo: str) -> dict[str, str]:
  """Instruction -> part, from the text of a compiled program.

  A fusion that has no part of its own is in the part of most of what it fuses.
  Instructions that only hold others are left out.

  Args:
    hlo: from `compiled.as_text()`.
  """
  own, fused, inside = {}, {}, collections.defaultdict(collections.Counter)
  computation = ''
  for line in hlo.splitlines():
    if header := _COMPUTATION.match(line):
      computation = header[1]
    if not (found := _INSTRUCTION.match(line)):
      continue
    name, opcode = found.groups()
    scopes, calls = _SCOPES.search(line), _CALLS.search(line)
    part = part_of(scopes[1]) if scopes else REST
    if part != REST:
      inside[computation][part] += 1
    if opcode not in _CONTAINERS:
      own[name] = part
      if part == REST and opcode == 'fusion' and calls:
        fused[name] = calls[1]
  for name, called in fused.items():
    for part, _ in inside[called].most_common(1):
      own[name] = part
  return own
