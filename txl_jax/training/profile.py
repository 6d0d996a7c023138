"""A profiler trace of some steps."""

import pathlib

import jax

# Steps before the first one that is traced: the first are not like the rest.
WARM_UP_STEPS = 10


class Profile:
  """Traces so many steps, a few steps after the run has begun.

  The trace can be opened with TensorBoard, XProf or Perfetto.
  """

  def __init__(self, folder: pathlib.Path, first: int, n_steps: int):
    """Plans a trace; with no steps there is none.

    Args:
      folder: of the trace.
      first: the step that the run begins after.
      n_steps: how many steps are traced.
    """
    self._folder = folder
    self._begin = first + WARM_UP_STEPS
    self._end = self._begin + n_steps
    self._traced = n_steps == 0
    self._running = False

  def after(self, done: int) -> None:
    """Begins or ends the trace after a step."""
    if self._running and done >= self._end:
      self.close()
    elif not self._traced and done >= self._begin:
      jax.profiler.start_trace(str(self._folder))
      self._running = self._traced = True

  def close(self) -> None:
    """Ends a trace that is running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
