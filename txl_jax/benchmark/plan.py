"""What a training step will need, found out by compiling it.

Nothing is allocated and nothing runs, so the devices need not be there. What
the compiler does not count is found in other ways: the operations of the model
by formula (model/operations.py), what devices send, and what they move to and
from main memory, in the text of the program.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.benchmark import plan_program as program
from txl_jax.benchmark.plan_program import Say, TooLargeError
from txl_jax.benchmark.synthetic import random_batch
from txl_jax.config import Config
from txl_jax.model.operations import training_operations_per_token
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.compile import lower_step
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state


def plan_training(
  config: Config, devices: Sequence[jax.Device], *, say: Say
) -> dict:
  """Compiles the train step, and reports what each chip needs.

  Args:
    config: the experiment, its mesh included.
    devices: of the machine or of a topology.
    say: receives lines of progress.

  Returns:
    The fields of a plan, as docs/tpu.md explains them, all for one chip.

  Raises:
    InputError: if mesh or rows do not divide among the devices.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  train = config.train
  mesh_lib.check_rows(mesh, train.batch_size, 'config.train.batch_size')
  state, batch = _shapes(config, mesh)
  plan = {
    'program': 'train',
    **program.heading(
      config.model, mesh, train.batch_size, train.segment_length
    ),
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'bytes': {
      'parameters': program.held(state.params),
      'optimizer': program.held((state.opt_state, state.average)),
      'memory': program.held(state.memory),
      'batch': program.held(batch),
    },
  }
  say('compiling the step')
  try:
    compiled = _compile(config, mesh, state, batch)
  except TooLargeError as error:
    return plan | {'fits': False, 'needed_bytes': error.needed}
  plan = program.weigh(plan, compiled, config.model, mesh)
  per_token = training_operations_per_token(
    config.model,
    batch_size=train.batch_size,
    segment_length=train.segment_length,
  )
  n_tokens = train.batch_size * train.segment_length * train.segments_per_step
  plan['operations'] = per_token * n_tokens / mesh.size
  return program.bound(plan, n_tokens)


def _shapes(config: Config, mesh: Mesh) -> tuple[Any, Any]:
  """State and batch, and how they lie on the devices."""
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  with jax.set_mesh(mesh):  # some kernels ask what they are traced for
    state = jax.eval_shape(lambda: init_state(config, optimizer))
  batch = random_batch(config.model.vocab_size, config.train, seed=0)
  return (
    program.placed(state, mesh_lib.state_shardings(mesh, state)),
    program.placed(batch, mesh_lib.by_rows(mesh, batch)),
  )


def _compile(
  config: Config, mesh: Mesh, state: Any, batch: Any
) -> jax.stages.Compiled:
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  return program.compile_program(
    lower_step(config, optimizer, mesh, state, batch)
  )
