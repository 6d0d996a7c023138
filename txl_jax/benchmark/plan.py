"""What a training step will need, found out by compiling it.

Nothing is allocated and nothing runs, so the devices need not be there. What
the compiler does not count is found in other ways: the operations of the model
by formula (model/operations.py), what devices send in the text of the program,
and the traffic of main memory, of which it counts the body of a loop once, from
models of one and of two layers that are written out.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.benchmark.collectives import Collective, collectives
from txl_jax.benchmark.synthetic import random_batch
from txl_jax.config import Config
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel import chips
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.compile import lower_step
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state

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


def plan_training(
  config: Config,
  devices: Sequence[jax.Device],
  *,
  traffic: bool,
  say: Say,
) -> dict:
  """Compiles the train step, and reports what each chip needs.

  Args:
    config: the experiment, its mesh included.
    devices: of the machine or of a topology.
    traffic: whether to count the traffic of main memory too, which takes two
      more compilations.
    say: receives lines of progress.

  Returns:
    The fields of a plan, as docs/tpu.md explains them, all for one chip.

  Raises:
    InputError: if mesh or rows do not divide among the devices.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  rows = config.train.batch_size
  mesh_lib.check_rows(mesh, rows, 'config.train.batch_size')
  state, batch = _shapes(config, mesh)
  sizes = _state_sizes(state, batch)
  plan = {
    'devices': mesh.size,
    'device_kind': mesh.devices.flat[0].device_kind,
    'mesh': dict(mesh.shape),
    'dtype': config.model.dtype,
    'batch': rows,
    'segment': config.train.segment_length,
    'memory': config.model.memory_length,
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'bytes': sizes,
  }
  say('compiling the step')
  try:
    compiled = _compile(config, mesh, state, batch)
  except TooLargeError as error:
    return plan | {'fits': False, 'needed_bytes': error.needed}
  text = compiled.as_text()
  exchanges = collectives(text, dict(mesh.shape))
  plan['attention'] = _attention(config, text)
  _add_program(plan, compiled)
  if traffic:
    plan['traffic'] = _traffic(config, mesh, say)
  plan['operations'] = _operations(config) / mesh.size
  plan['collectives'] = [dataclasses.asdict(each) for each in exchanges]
  return plan | _bound(plan, exchanges, config)


def _shapes(config: Config, mesh: Mesh) -> tuple[Any, Any]:
  """State and batch, and how they lie on the devices."""
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  with jax.set_mesh(mesh):  # some kernels ask what they are traced for
    state = jax.eval_shape(lambda: init_state(config, optimizer))
  batch = random_batch(config.model.vocab_size, config.train, seed=0)

  def placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
      shardings,
    )

  return (
    placed(state, mesh_lib.state_shardings(mesh, state)),
    placed(batch, mesh_lib.by_rows(mesh, batch)),
  )


def _state_sizes(state: Any, batch: Any) -> dict[str, int]:
  """Bytes that each device holds from step to step."""

  def held(tree: Any) -> int:
    return sum(
      leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape))
      for leaf in jax.tree.leaves(tree)
    )

  parts = {
    'parameters': held(state.params),
    'optimizer': held((state.opt_state, state.average)),
    'memory': held(state.memory),
    'batch': held(batch),
  }
  return parts


def _size(shape: tuple[int, ...]) -> int:
  size = 1
  for length in shape:
    size *= length
  return size


def _compile(
  config: Config, mesh: Mesh, state: Any, batch: Any
) -> jax.stages.Compiled:
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  lowered = lower_step(config, optimizer, mesh, state, batch)
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise TooLargeError(error) from error


def _attention(config: Config, text: str) -> str:
  """The implementation of attention in a program."""
  configured = config.model.attention_implementation
  if configured != 'auto':
    return configured
  return 'splash' if 'splash_mha' in text else 'xla'


def _add_program(plan: dict, compiled: jax.stages.Compiled) -> None:
  """What the compiled program needs beside the state, and whether it fits."""
  found = compiled.memory_analysis()
  held = found.argument_size_in_bytes + found.output_size_in_bytes
  plan['bytes'] |= {
    'temporary': found.temp_size_in_bytes,
    'program': found.generated_code_size_in_bytes,
  }
  plan['needed_bytes'] = (
    held
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
    + found.generated_code_size_in_bytes
  )
  chip = chips.published(plan['device_kind'])
  plan['fits'] = chip and plan['needed_bytes'] <= chip.memory


def _traffic(config: Config, mesh: Mesh, say: Say) -> dict | None:
  """Bytes read and written by a step, and by each layer."""
  counted = []
  for n_layers in (1, 2):
    say(f'counting the traffic of a model of {n_layers} written-out layers')
    model = dataclasses.replace(
      config.model, n_layers=n_layers, unroll=n_layers
    )
    small = dataclasses.replace(config, model=model)
    compiled = _compile(small, mesh, *_shapes(small, mesh))
    counted.append(compiled.cost_analysis().get('bytes accessed'))
  if None in counted:
    return None
  layer = counted[1] - counted[0]
  rest = counted[0] - layer
  return {'layer': layer, 'step': rest + config.model.n_layers * layer}


def _operations(config: Config) -> float:
  """Of the model in a step, on all devices."""
  train = config.train
  per_token = training_operations_per_token(
    config.model,
    batch_size=train.batch_size,
    segment_length=train.segment_length,
  )
  return per_token * _tokens(config)


def _tokens(config: Config) -> int:
  train = config.train
  return train.batch_size * train.segment_length * train.segments_per_step


def _bound(plan: dict, exchanges: list[Collective], config: Config) -> dict:
  """The least time that a step can take, by what the maker says of the chip."""
  chip = chips.published(plan['device_kind'])
  if chip is None:
    return {'milliseconds': None, 'limited_by': None, 'bound': None}
  sent = sum(exchange.sent for exchange in exchanges)
  times = {
    'compute': 1e3 * plan['operations'] / chip.flops,
    'network': 1e3 * sent / chip.network,
  }
  if plan.get('traffic'):
    times['main memory'] = 1e3 * plan['traffic']['step'] / chip.bandwidth
  limit = max(times, key=times.get)
  return {
    'milliseconds': times,
    'limited_by': limit,
    'bound': times[limit],
    'tokens_per_second': 1e3 * _tokens(config) / times[limit],
  }
