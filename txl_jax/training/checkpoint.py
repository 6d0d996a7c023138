"""Checkpoints of the complete train state, through Orbax."""

import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from txl_jax.errors import InputError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.checksums import find_damage, write_checksums
from txl_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints of a work directory, newest last."""

  def __init__(self, folder: pathlib.Path, keep: int = 2):
    # Orbax reports each save and restore; the loop has its own progress line.
    logging.getLogger('absl').setLevel(logging.ERROR)
    self._folder = folder.absolute()
    self._keep = keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(self._folder, options=options)

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, meter: dict) -> None:
    """Saves the state, and the sums the metrics have reached."""
    step = int(state.step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_storable(state)),
        meter=ocp.args.JsonSave(meter),
      ),
    )
    write_checksums(self._folder / str(step))

  def restore(
    self, abstract: TrainState, say: Callable[[str], None]
  ) -> tuple[TrainState, dict] | None:
    """The newest checkpoint that is whole, or None if there is none.

    A broken one is set aside, with a word about it, and the one before tried.

    Args:
      abstract: shapes, dtypes and shardings of the state.
      say: receives a sentence for each broken checkpoint.
    """
    for step in reversed(self.steps()):
      damage = find_damage(self._folder / str(step))
      if damage is None:
        return self._restore_step(step, abstract)
      aside = self._set_aside(step)
      say(
        f'The checkpoint of step {step} is broken ({damage}) and was moved to '
        f'{aside}; trying the one before.'
      )
    return None

  def _restore_step(self, step: int, abstract: TrainState) -> tuple:
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_storable(abstract)),
        meter=ocp.args.JsonRestore(),
      ),
    )
    return _from_storable(restored.state, abstract), restored.meter

  def _set_aside(self, step: int) -> pathlib.Path:
    self._manager.close()
    aside = self._folder.with_name('broken_checkpoints') / str(step)
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(self._folder / str(step), aside)
    self._manager = self._open()
    return aside

  def close(self) -> None:
    """Releases Orbax's threads."""
    self._manager.close()


def abstract_state(
  init: Callable[[], TrainState], mesh: Mesh, *, by_rows: bool = True
) -> TrainState:
  """Shapes and dtypes of the state, and where it shall lie on the mesh.

  Args:
    init: makes a fresh state; it is only traced.
    mesh: the devices.
    by_rows: whether the memory is divided by rows, as in training.
  """
  shapes = jax.eval_shape(init)
  if by_rows:
    shardings = mesh_lib.state_shardings(mesh, shapes)
  else:
    shardings = jax.tree.map(lambda _: mesh_lib.replicated(mesh), shapes)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def restore_params(
  folder: pathlib.Path,
  init: Callable[[], TrainState],
  mesh: Mesh,
  say: Callable[[str], None],
) -> tuple[dict, int]:
  """Parameters of the newest whole checkpoint, and its step.

  Raises:
    InputError: if there is none.
  """
  restored = None
  if folder.is_dir():
    checkpoints = Checkpoints(folder)
    abstract = abstract_state(init, mesh, by_rows=False)
    restored = checkpoints.restore(abstract, say)
    checkpoints.close()
  if restored is None:
    raise InputError(f'{folder} holds no checkpoint')
  state, _ = restored
  return state.params, int(state.step)


def _storable(state: TrainState) -> dict[str, Any]:
  """The state as a dict; Orbax refuses arrays of size zero (no memory)."""
  tree = {
    'step': state.step,
    'params': state.params,
    'opt_state': state.opt_state,
    'key': state.key,
    'valid': state.memory.valid_B,
  }
  if state.memory.length:
    tree['hidden'] = state.memory.hidden_NBMD
  return tree


def _from_storable(tree: dict[str, Any], abstract: TrainState) -> TrainState:
  memory = abstract.memory
  hidden = tree.get('hidden')
  if hidden is None:
    shape, dtype = memory.hidden_NBMD.shape, memory.hidden_NBMD.dtype
    hidden = jax.numpy.zeros(shape, dtype, device=memory.hidden_NBMD.sharding)
  return TrainState(
    step=tree['step'],
    params=tree['params'],
    opt_state=tree['opt_state'],
    memory=memory.replace(hidden_NBMD=hidden, valid_B=tree['valid']),
    key=tree['key'],
  )
