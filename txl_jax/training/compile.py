"""The train step of a run, compiled ahead of its first batch."""

import functools
import time
from collections.abc import Callable

import jax

from txl_jax.data.streams import Batch
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.averaging import update_average
from txl_jax.training.setup import Setup
from txl_jax.training.state import TrainState
from txl_jax.training.step import make_train_step, several_steps


def compile_step(setup: Setup, state: TrainState, batch: Batch) -> Callable:
  """`(state, batch) -> (state, metrics)` on the mesh; the state is donated.

  Args:
    setup: the run.
    state: on the devices.
    batch: on the devices.
  """
  began = time.monotonic()
  config = setup.config
  average = functools.partial(_average, config)
  step = make_train_step(
    config.model,
    setup.optimizer,
    loss=config.train.loss,
    row_chunks=config.train.row_chunks,
    average=None if state.average is None else average,
  )
  if config.train.steps_per_call > 1:
    step = several_steps(step, config.train.steps_per_call)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
  whole = mesh_lib.replicated(setup.mesh)
  jitted = jax.jit(
    step,
    in_shardings=shardings,
    out_shardings=(shardings[0], whole),
    donate_argnums=0,
  )
  with mesh_lib.sharded(setup.mesh):
    lowered = jitted.lower(state, batch)
  compiled = lowered.compile(compiler_options=_options(setup))
  setup.say(f'Compiled in {time.monotonic() - began:.0f} s')
  return compiled


def _average(config, average, params, step):
  return update_average(
    config.optimizer, average, params, step, config.train.steps
  )


def _options(setup: Setup) -> dict:
  """Makes a GPU compute the same bits each time, if that is asked for."""
  on_gpu = setup.mesh.devices.flat[0].platform == 'gpu'
  if not (setup.config.train.deterministic and on_gpu):
    return {}
  # Which kernels were the fastest is kept: another choice rounds otherwise.
  folder = setup.work.path.absolute() / 'autotuning'
  folder.mkdir(exist_ok=True)
  return {
    'xla_gpu_deterministic_ops': True,
    'xla_gpu_per_fusion_autotune_cache_dir': str(folder),
  }
