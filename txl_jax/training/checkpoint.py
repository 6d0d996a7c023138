"""Checkpoints of the complete train state, through Orbax."""

import concurrent.futures
import contextlib
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from txl_jax.errors import InputError, TrainingError
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel import processes
from txl_jax.training.checksums import find_damage, write_checksums
from txl_jax.training.state import TrainState, from_storable, storable

Say = Callable[[str], None]


class _Manager(ocp.CheckpointManager):
  """Has barriers of its own; leaves it to the loop to ask for signals."""

  # JAX stops at the step after the last that anyone asked about; Orbax's
  # threads ask about past steps, after which no run would stop any more.
  reached_preemption = staticmethod(lambda step: False)

  def __init__(self, folder: pathlib.Path):
    # Without a name, two folders that are written at once share barriers.
    barriers = ocp.options.MultiprocessingOptions(
      barrier_sync_key_prefix=folder.name
    )
    options = ocp.CheckpointManagerOptions(multiprocessing_options=barriers)
    super().__init__(folder, options=options)


class Checkpoints:
  """The checkpoints of a folder, newest last.

  They are written while training goes on. One counts from when its checksums
  are there; only then are older ones deleted.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    keep: int = 2,
    keep_every_steps: int | None = None,
  ):
    """Opens or makes the folder.

    Args:
      folder: of the checkpoints, each in a folder named by its step.
      keep: so many newest ones are kept.
      keep_every_steps: as are those of multiples of so many steps.
    """
    # Orbax reports each save and restore; the loop has its own progress line.
    logging.getLogger('absl').setLevel(logging.ERROR)
    self._folder = folder.absolute()
    self._keep, self._keep_every_steps = keep, keep_every_steps
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._saving: int | None = None
    self._checking: concurrent.futures.Future | None = None
    self._news: list[str] = []
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    try:
      return _Manager(self._folder)
    # Damage to its own records keeps Orbax from opening any checkpoint.
    except Exception:
      steps = (p.name for p in self._folder.iterdir() if p.name.isdecimal())
      broken = {step: find_damage(self._folder / step) for step in steps}
      broken = {step: damage for step, damage in broken.items() if damage}
      if not broken:
        raise
      for step, damage in broken.items():
        self._news.append(_moved(step, damage, self._move_aside(step)))
      return _Manager(self._folder)

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, host: dict) -> None:
    """Begins to save the state, and what the host knows beside it, as JSON.

    Returns as soon as the state may change.

    Raises:
      TrainingError: if this or the checkpoint before cannot be written.
    """
    self.wait()
    step = int(state.step)
    if step in self.steps():
      return
    self._saving = step
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(storable(state)),
          host=ocp.args.JsonSave(host),
        ),
      )
    except (OSError, ValueError) as error:
      raise self._unwritten(error) from error

  def poll(self) -> None:
    """Lets a save that has been written be checked; never waits."""
    if self._saving is None or self._checking is not None:
      return
    if processes.is_main() and not self._manager.is_saving_in_progress():
      self._checking = self._thread.submit(self._check, self._saving)

  def wait(self) -> None:
    """Waits until the checkpoint is complete, then deletes old ones.

    Raises:
      TrainingError: if it could not be written.
    """
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self.poll()
      if self._checking is not None:
        self._checking.result()
    # Whatever the storage library raises for a full disk.
    except Exception as error:
      raise self._unwritten(error) from error
    self._saving = self._checking = None
    processes.barrier('checkpoint')
    for step in self.steps()[: -self._keep]:
      if not (self._keep_every_steps and step % self._keep_every_steps == 0):
        self._manager.delete(step)

  def _check(self, step: int) -> None:
    self._manager.check_for_errors()
    write_checksums(self._folder / str(step))

  def _unwritten(self, error: Exception) -> TrainingError:
    whole = [step for step in self.steps() if step != self._saving]
    intact = (
      f'that of step {whole[-1]:,} is intact'
      if whole
      else 'there is none before it'
    )
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return TrainingError(
      f'the checkpoint of step {self._saving:,} cannot be written to '
      f'{self._folder} ({reason[:300]}); {intact}'
    )

  def restore(
    self, abstract: TrainState, say: Say
  ) -> tuple[TrainState, dict] | None:
    """The newest checkpoint that is whole, or None if there is none.

    A broken one is set aside, with a word about it, and the one before tried.

    Args:
      abstract: shapes, dtypes and shardings of the state.
      say: receives a sentence for each broken checkpoint.
    """
    while self._news:
      say(self._news.pop())
    for step in reversed(self.steps()):
      folder = self._folder / str(step)
      damage = processes.agree(functools.partial(find_damage, folder))
      if damage is None:
        return self._restore_step(step, abstract)
      aside = self._set_aside(step)
      say(_moved(step, damage, aside))
    return None

  def _restore_step(self, step: int, abstract: TrainState) -> tuple:
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(storable(abstract)),
        host=ocp.args.JsonRestore(),
      ),
    )
    return from_storable(restored.state, abstract), restored.host

  def _set_aside(self, step: int) -> pathlib.Path:
    self._manager.close()
    aside = self._move_aside(str(step))
    self._manager = self._open()
    return aside

  def _move_aside(self, step: str) -> pathlib.Path:
    aside = self._folder.with_name(f'broken_{self._folder.name}') / step
    if processes.is_main():
      aside.parent.mkdir(exist_ok=True)
      shutil.rmtree(aside, ignore_errors=True)
      os.replace(self._folder / step, aside)
    processes.barrier('aside')
    return aside

  def drop_after(self, step: int) -> None:
    """Deletes those of later steps: the run goes on from this one."""
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def close(self) -> None:
    """Waits, and releases Orbax's threads."""
    self.wait()
    self._thread.shutdown()
    self._manager.close()


def _moved(step: object, damage: str, aside: pathlib.Path) -> str:
  return (
    f'The checkpoint of step {step} is broken ({damage}) and was moved to '
    f'{aside}; trying the one before.'
  )


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


def has_checkpoints(folder: pathlib.Path) -> bool:
  """Whether a folder holds a checkpoint, whole or not."""
  return folder.is_dir() and any(p.name.isdecimal() for p in folder.iterdir())


def restore_whole(
  folder: pathlib.Path, init: Callable[[], TrainState], mesh: Mesh, say: Say
) -> TrainState:
  """The state of the newest whole checkpoint, on every device.

  Raises:
    InputError: if there is none.
  """
  restored = None
  if folder.is_dir():
    abstract = abstract_state(init, mesh, by_rows=False)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
      restored = checkpoints.restore(abstract, say)
  if restored is None:
    raise InputError(f'{folder} holds no checkpoint')
  return restored[0]
