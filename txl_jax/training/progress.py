"""Lines for the metrics file and for the person who watches."""

import math

from txl_jax.evaluation.perplexity import Result
from txl_jax.training.metrics import Meter
from txl_jax.training.optimizer import make_schedule
from txl_jax.training.setup import Setup


def record_training(setup: Setup, meter: Meter, done: int) -> None:
  """Adds what the meter has summed up to a step, and says it."""
  config, line = setup.config, meter.line()
  schedule = make_schedule(config.optimizer, config.train.steps)
  rate = float(schedule(done - 1))
  train = config.train
  per_step = train.batch_size * train.segment_length * train.segments_per_step
  facts = {'tokens': done * per_step, 'learning_rate': rate}
  setup.metrics.append(step=done, split='train', **line, **facts)
  left = (train.steps - done) * per_step / line['tokens_per_second']
  measure = setup.corpus.vocabulary.measure
  value = line['bpc'] if measure == 'bpc' else math.exp(line['loss'])
  setup.say(
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


def record_result(setup: Setup, step: int, split: str, result: Result) -> None:
  """Adds an evaluation, and says it."""
  figures = result.to_json()
  setup.metrics.append(
    step=step, split=split, loss=figures.pop('nll'), **figures
  )
  measure = setup.corpus.vocabulary.measure
  setup.say(
    f'{split} at step {step:,}: loss {result.nll:.4f}  '
    f'{measure} {getattr(result, measure):.4f}  ({result.tokens:,} tokens)'
  )
