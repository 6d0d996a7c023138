"""Metrics for TensorBoard and for Weights & Biases."""

import pathlib
from collections.abc import Callable

from txl_jax.errors import InputError

Listener = Callable[[dict], None]


def tensorboard(folder: pathlib.Path, first_step: int) -> Listener:
  """Writes each line of metrics as events.

  Args:
    folder: of the events.
    first_step: events of this step and later ones, of an interrupted run, are
      hidden.
  """
  from tensorboardX import SummaryWriter

  writer = SummaryWriter(str(folder), purge_step=first_step)

  def listen(line: dict) -> None:
    for name, value in flat(line).items():
      writer.add_scalar(name, value, line['step'])
    writer.flush()

  return listen


def weights_and_biases(
  project: str, folder: pathlib.Path, config: dict
) -> Listener:
  """Sends each line of metrics to a run of the project.

  The run is named after the work directory, so that it goes on with it.

  Raises:
    InputError: if the package is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise InputError(
      f'config.train.wandb_project is {project!r}, but wandb is not here: pip '
      "install 'txl_jax[wandb]'"
    ) from error
  name = folder.resolve().name
  run = wandb.init(
    project=project,
    name=name,
    id=name,
    resume='allow',
    dir=str(folder),
    config=config,
  )
  return lambda line: run.log(flat(line), step=line['step'])


def flat(line: dict) -> dict[str, float]:
  """The numbers of a line by `split/name`, those of groups one by one."""
  numbers = {}
  for name, value in line.items():
    values = value if isinstance(value, dict) else {'': value}
    for group, number in values.items():
      if name != 'step' and isinstance(number, int | float):
        key = f'{line["split"]}/{name}/{group}'.rstrip('/')
        numbers[key] = number
  return numbers
