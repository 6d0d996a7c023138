"""The train step of a configuration, compiled ahead of its first batch."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from txl_jax.config import Config
from txl_jax.data.streams import Batch
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.averaging import update_average
from txl_jax.training.groups import stop_frozen
from txl_jax.training.state import TrainState
from txl_jax.training.step import make_train_step, several_steps

# What a GPU records once and then replays without the host: what XLA would
# choose, and loops. Those over the adaptive softmax's tails end when their data
# say so, for which the host would wait each time.
_ON_GPUS = {
  'xla_gpu_enable_command_buffer': (
    'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,'
    'CONDITIONAL,WHILE'
  ),
}
# A few large sums of gradients after the backward pass: beside it, each would
# slow down more than it takes. They are summed where they are, as copying them
# into one array and back took as long as the sum.
_ON_GPUS_OF_A_HOST = {
  'xla_gpu_all_reduce_combine_threshold_bytes': 1 << 30,
  'xla_disable_hlo_passes': 'all-reduce-contiguous',
}


def compile_step(
  config: Config,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state: TrainState,
  batch: Batch,
  options: dict | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
  """`(state, batch) -> (state, metrics)`; the state is donated.

  Args:
    config: the experiment.
    optimizer: of it.
    mesh: the devices.
    state: on the devices.
    batch: on the devices.
    options: of the compiler.
  """
  lowered = lower_step(config, optimizer, mesh, state, batch)
  with mesh_lib.sharded(mesh):
    return lowered.compile(compiler_options=options)


def lower_step(
  config: Config,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state: TrainState,
  batch: Batch,
) -> jax.stages.Lowered:
  """What `compile_step` compiles."""
  average = functools.partial(_average, config)
  step = make_train_step(
    config.model,
    optimizer,
    loss=config.train.loss,
    row_chunks=config.train.row_chunks,
    stop=functools.partial(stop_frozen, config.optimizer),
    average=None if state.average is None else average,
  )
  if config.train.steps_per_call > 1:
    step = several_steps(step, config.train.steps_per_call)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
  jitted = jax.jit(
    step,
    in_shardings=shardings,
    out_shardings=(shardings[0], mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )
  with mesh_lib.sharded(mesh):
    return jitted.lower(state, batch)


def _average(config: Config, average: Any, params: dict, step: jax.Array):
  steps = config.train.steps
  return update_average(config.optimizer, average, params, step, steps)


def compiler_options(
  config: Config, folder: pathlib.Path, mesh: Mesh
) -> dict[str, str | int | bool]:
  """Options with which XLA is to compile the step, for GPUs.

  With `train.deterministic` those too with which a GPU computes the same bits
  each time; which kernels were the fastest is kept, as another choice rounds
  otherwise. What the environment variable XLA_FLAGS names is as it says.

  Args:
    config: the experiment.
    folder: where that choice is kept; made if it is needed.
    mesh: the devices.
  """
  if mesh.devices.flat[0].platform != 'gpu':
    return {}
  options = dict(_ON_GPUS)
  if 1 < mesh.size == len(mesh.local_devices):
    options |= _ON_GPUS_OF_A_HOST
  if config.train.deterministic:
    folder.mkdir(exist_ok=True)
    options |= {
      'xla_gpu_deterministic_ops': True,
      'xla_gpu_per_fusion_autotune_cache_dir': str(folder.absolute()),
    }
  flags = os.environ.get('XLA_FLAGS', '')
  return {name: x for name, x in options.items() if f'--{name}=' not in flags}
