"""Lines for the metrics file and for the person who watches."""

import math

import jax
import tqdm

from txl_jax.conversion import to_config_dict
from txl_jax.evaluation.perplexity import Result, settings_line
from txl_jax.training import listeners
from txl_jax.training.meter import Meter
from txl_jax.training.setup import Setup
from txl_jax.training.state import run_key


def listen(setup: Setup, step: int) -> None:
  """Sends metrics where the configuration wants them beside the file."""
  if not setup.is_main:
    return
  train, work, all_of = setup.config.train, setup.work, setup.metrics.listeners
  if train.tensorboard:
    all_of.append(listeners.tensorboard(work.tensorboard, step + 1))
  if train.wandb_project:
    config = to_config_dict(setup.config).to_dict()
    all_of.append(
      listeners.weights_and_biases(train.wandb_project, work.path, config)
    )


def progress_bar(steps: int, first: int) -> tqdm.tqdm:
  """A line that moves, on a terminal; nothing in the log of a batch job."""
  return tqdm.tqdm(
    total=steps, initial=first, unit='step', disable=None, leave=False
  )


def record_training(
  setup: Setup, meter: Meter, done: int, rate_scale: float
) -> None:
  """Adds what the meter has summed up to a step, and says it."""
  line = meter.line()
  record_skipped(setup, meter)
  facts = setup.facts_of(done, line['tokens_per_second'])
  facts['learning_rate'] *= rate_scale
  setup.metrics.append(step=done, split='train', **line, **facts)
  if 'loss' in line:
    setup.say(_progress(setup, done, line))


def record_skipped(setup: Setup, meter: Meter) -> None:
  """Adds the steps that were skipped, with their keys, and says so."""
  key = run_key(setup.config.train.seed)
  skipped, meter.skipped = meter.skipped, []
  for step in skipped:
    own_key = jax.random.fold_in(key, step['step'] - 1)
    own_key = jax.random.key_data(own_key).tolist()
    setup.metrics.append(split='skipped', **step, key=own_key)
    setup.say(
      f'Skipped step {step["step"]:,}: the loss or the gradient of '
      f'{", ".join(step["groups"]) or "nothing"} is not finite'
    )


def _progress(setup: Setup, done: int, line: dict) -> str:
  train = setup.config.train
  left = (train.steps - done) * train.tokens_per_step
  left /= line['tokens_per_second']
  measure = setup.corpus.vocabulary.measure
  value = line['bpc'] if measure == 'bpc' else math.exp(line['loss'])
  return (
    f'step {done:>{len(str(train.steps))}}/{train.steps}  '
    f'loss {line["loss"]:.3f}  {measure} {value:.3f}  '
    f'{line["tokens_per_second"]:,.0f} tokens/s  {_clock(left)} left'
  )


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  )


def record_result(
  setup: Setup, step: int, split: str, result: Result, **facts: int
) -> None:
  """Adds an evaluation, and says it."""
  figures = result.to_json()
  setup.metrics.append(
    step=step, split=split, loss=figures.pop('nll'), **figures, **facts
  )
  measure = setup.corpus.vocabulary.measure
  setup.say(
    f'{split} at step {step:,}: loss {result.nll:.4f}  '
    f'{measure} {getattr(result, measure):.4f}  ({result.tokens:,} tokens, '
    f'{settings_line(setup.config.eval)})'
  )
