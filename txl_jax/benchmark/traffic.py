"""What a compiled program moves to and from the main memory of a device.

The compiler's own count has loops run once, and includes what stays in the
memory on the chip. Here each instruction reads and writes its arrays once,
those in main memory; of an array of which it takes or replaces a part, that
part. Kernels that read an array several times count once, and padding does not
count, so this is a least amount.
"""

from txl_jax.benchmark.hlo import Array, Instruction, Program

_FREE = frozenset(
  (
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
    *('while', 'conditional', 'call', 'async-start', 'async-update'),
    *('opt-barrier', 'after-all', 'partition-id', 'replica-id'),
  )
)
# Names for what lies somewhere already.
_FREE_CALLS = ('ConcatBitcast', 'AllocateBuffer', 'AssumeGatherIndicesInBound')
_TAKES_PART = ('dynamic-slice', 'slice', 'gather')
# The operand that replaces a part of the first.
_REPLACES_PART = {'dynamic-update-slice': 1, 'scatter': 2}


def traffic(text: str) -> float:
  """Bytes of main memory that one run reads and writes at least.

  Args:
    text: of the compiled program, from `Compiled.as_text`.
  """
  program = Program(text)
  runs = program.runs(enters=lambda each: each.opcode != 'fusion')
  return sum(times * _moved(program, each) for each, times in runs)


def _moved(program: Program, each: Instruction) -> float:
  if each.opcode in _FREE or each.opcode.endswith('-done'):
    return 0
  if each.opcode == 'custom-call' and any(x in each.line for x in _FREE_CALLS):
    return 0
  if each.opcode in ('copy-start', 'slice-start'):
    ends = each.arrays[:2]
    return min(end.size for end in ends) * sum(x.in_main_memory for x in ends)
  if each.opcode == 'fusion':
    return _moved_by_fusion(program, each)
  operands = [program.named[name] for name in each.operands]
  if each.opcode in _TAKES_PART:
    part = each.arrays[0]
    return part.size * (_is_in_main(operands[0]) + part.in_main_memory)
  if each.opcode in _REPLACES_PART:
    part = operands[_REPLACES_PART[each.opcode]]
    return _in_main(part.arrays) + _size(part) * _is_in_main(each)
  return _in_main(each.arrays) + sum(_in_main(x.arrays) for x in operands)


def _moved_by_fusion(program: Program, fusion: Instruction) -> float:
  own = program.computations[fusion.callees()[0]]
  read = sum(
    min(_read(program, own, place), _in_main(program.named[name].arrays))
    for place, name in enumerate(fusion.operands)
  )
  root = next(each for each in own if each.is_root)
  made = [root]
  if root.opcode == 'tuple':
    made = [program.named[name] for name in root.operands]
  if len(made) != len(fusion.arrays):  # a sort, or one fused in turn
    return read + _in_main(fusion.arrays)
  pairs = zip(fusion.arrays, made, strict=True)
  return read + sum(
    min(array.size, _replaced(program, each))
    for array, each in pairs
    if array.in_main_memory
  )


def _read(program: Program, own: list[Instruction], place: int) -> float:
  """Bytes that a fused computation takes of one of its operands."""
  parameter = next(
    each for each in own if f' parameter({place})' in each.line
  ).name
  return _used(program, own, parameter)


def _used(program: Program, own: list[Instruction], name: str) -> float:
  total = 0.0
  for each in own:
    for place, operand in enumerate(each.operands):
      if operand != name:
        continue
      if each.opcode in _TAKES_PART and place == 0:
        total += _size(each)
      elif each.opcode == 'bitcast':
        total += _used(program, own, each.name)
      elif each.opcode == 'fusion':
        inner = program.computations[each.callees()[0]]
        total += _read(program, inner, place)
      elif each.opcode not in _REPLACES_PART or place:
        return float('inf')
  return total


def _replaced(program: Program, each: Instruction) -> float:
  """Bytes that an instruction writes, at its end of a fused computation."""
  while each.opcode == 'bitcast':
    each = program.named[each.operands[0]]
  if each.opcode in _REPLACES_PART:
    each = program.named[each.operands[_REPLACES_PART[each.opcode]]]
  return _size(each)


def _size(each: Instruction) -> float:
  return sum(array.size for array in each.arrays)


def _in_main(arrays: tuple[Array, ...]) -> float:
  return sum(array.size for array in arrays if array.in_main_memory)


def _is_in_main(each: Instruction) -> bool:
  return any(array.in_main_memory for array in each.arrays)
