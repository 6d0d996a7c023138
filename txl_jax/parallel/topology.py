"""Chips that are not there: what TPU programs can be compiled for.

The compiler of TPUs comes as a Python package and runs on any machine.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from txl_jax.errors import InputError

# Cores of a chip that count as one device need to be asked for.
_OPTIONS = {
  'v4': {'chip_config_name': 'megacore'},
  'v5e': {},
  'v5p': {},
  'v6e': {},
}


def topology_devices(name: str) -> Sequence[jax.Device]:
  """The chips of a topology.

  Args:
    name: generation and shape, such as 'v5e:16x16' or 'v5p:8x8x16'.

  Raises:
    InputError: for a topology that does not exist, or without the compiler.
  """
  generation, _, shape = name.partition(':')
  if generation not in _OPTIONS or not re.fullmatch(r'\d+(x\d+){1,2}', shape):
    raise InputError(
      f'--topology must be one of {", ".join(_OPTIONS)}, a colon and the shape '
      f'(v5e:16x16, v5p:8x8x16), found {name!r}'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      "the compiler of TPUs is missing: pip install 'txl_jax[tpu]'"
    )
  # Neither the compiler nor JAX shall look for a TPU here, or lock it.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **_OPTIONS[generation]
    ).devices
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise InputError(f'--topology={name}: {error}') from error
  n_chips = math.prod(map(int, shape.split('x')))
  if len(found) != n_chips:
    raise InputError(
      f'--topology={name} has {n_chips} chips, the compiler sees {len(found)}'
    )
  return found
