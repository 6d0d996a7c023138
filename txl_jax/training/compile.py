"""The train step of a configuration, compiled ahead of its first batch."""

import functools
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
) -> dict | None:
  """Options with which a GPU computes the same bits each time, if it is to.

  Which kernels were the fastest is kept: another choice rounds otherwise.

  Args:
    config: the experiment.
    folder: where that is kept; made if it is needed.
    mesh: the devices.
  """
  on_gpu = mesh.devices.flat[0].platform == 'gpu'
  if not (config.train.deterministic and on_gpu):
    return None
  folder.mkdir(exist_ok=True)
  return {
    'xla_gpu_deterministic_ops': True,
    'xla_gpu_per_fusion_autotune_cache_dir': str(folder.absolute()),
  }
