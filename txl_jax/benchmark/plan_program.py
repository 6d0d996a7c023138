"""What the plans of all programs share: a compiled program, weighed."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.collectives import collectives
from txl_jax.benchmark.traffic import traffic
from txl_jax.config import ModelConfig
from txl_jax.parallel import chips

Say = Callable[[str], None]
_TOO_LARGE = re.compile(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', re.I)


class TooLargeError(Exception):
  """A program needs more memory than a device has.

  Attributes:
    needed: bytes, as the compiler says; None if it does not.
  """

  def __init__(self, error: jax.errors.JaxRuntimeError):
    """Reads what the compiler says."""
    super().__init__(str(error))
    found = _TOO_LARGE.search(str(error))
    scale = {'K': 1, 'M': 2, 'G': 3, 'T': 4}
    self.needed = found and round(
      float(found[1]) * 1024 ** scale[found[2].upper()]
    )


def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles.

  Raises:
    TooLargeError: if the compiler finds that it does not fit.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise TooLargeError(error) from error


def placed(tree: Any, shardings: Any) -> Any:
  """The shapes of a tree, and how they lie on the devices."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )


def held(tree: Any) -> int:
  """Bytes of placed shapes on each device."""
  shards = (
    (leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(tree)
  )
  return sum(
    dtype.itemsize * jax.ShapeDtypeStruct(shape, dtype).size
    for dtype, shape in shards
  )


def heading(model: ModelConfig, mesh: Mesh, rows: int, segment: int) -> dict:
  """The fields that say what a plan is for."""
  return {
    'devices': mesh.size,
    'device_kind': mesh.devices.flat[0].device_kind,
    'mesh': dict(mesh.shape),
    'dtype': model.dtype,
    'batch': rows,
    'segment': segment,
    'memory': model.memory_length,
  }


def weigh(
  plan: dict, compiled: jax.stages.Compiled, model: ModelConfig, mesh: Mesh
) -> dict:
  """The plan with what the program needs, whether it fits, and what it sends.

  Args:
    plan: its heading, and the bytes of what goes in.
    compiled: the program.
    model: that it computes.
    mesh: the devices.
  """
  text, found = compiled.as_text(), compiled.memory_analysis()
  inputs = found.argument_size_in_bytes + found.output_size_in_bytes
  sizes = plan['bytes'] | {
    'temporary': found.temp_size_in_bytes,
    'program': found.generated_code_size_in_bytes,
  }
  needed = inputs - found.alias_size_in_bytes
  needed += sizes['temporary'] + sizes['program']
  chip = chips.published(plan['device_kind'])
  exchanges = collectives(text, dict(mesh.shape))
  return plan | {
    'bytes': sizes,
    'needed_bytes': needed,
    'fits': chip and needed <= chip.memory,
    'attention': _attention(model, text),
    'traffic': traffic(text),
    'collectives': [dataclasses.asdict(each) for each in exchanges],
  }


def _attention(model: ModelConfig, text: str) -> str:
  """The implementation of attention in a program."""
  if model.attention_implementation != 'auto':
    return model.attention_implementation
  kernels = {'splash_mha': 'splash', 'mosaic_gpu': 'mosaic_gpu'}
  # The rest of a layer has kernels of the same kind.
  own = [
    line
    for line in text.splitlines()
    if '/attention/' in line and '/projections/' not in line
  ]
  found = (
    name for call, name in kernels.items() if any(call in x for x in own)
  )
  return next(found, 'xla')


def bound(plan: dict, n_tokens: int) -> dict:
  """The plan with the least time it takes, by what the maker says of the chip.

  Args:
    plan: with operations, traffic and collectives.
    n_tokens: that all devices read or write together.
  """
  chip = chips.published(plan['device_kind'])
  if chip is None:
    return plan | {'milliseconds': None, 'limited_by': None, 'bound': None}
  sent = sum(each['sent'] for each in plan['collectives'])
  times = {
    'compute': 1e3 * plan['operations'] / chip.flops,
    'main memory': 1e3 * plan['traffic'] / chip.bandwidth,
    'network': 1e3 * sent / chip.network,
  }
  limit = max(times, key=times.get)
  return plan | {
    'milliseconds': times,
    'limited_by': limit,
    'bound': times[limit],
    'tokens_per_second': 1e3 * n_tokens / times[limit],
  }
