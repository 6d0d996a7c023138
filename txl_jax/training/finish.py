"""What follows training: the test loss, and samples."""

from txl_jax.generation.text import continue_text
from txl_jax.parallel import processes
from txl_jax.training.checkpoint import has_checkpoints, restore_whole
from txl_jax.training.progress import record_result
from txl_jax.training.setup import Setup
from txl_jax.training.state import TrainState
from txl_jax.training.workdir import write_json


def finish(setup: Setup, state: TrainState) -> bool:
  """Tests and samples with the best parameters; whether that was left to do.

  The best are those of the lowest validation loss, as in the paper's code.
  """
  step, work = int(state.step), setup.work
  tested = [
    line
    for line in setup.metrics.read()
    if line['split'] == 'test' and line['step'] == step
  ]
  if tested and work.samples.exists() and work.report.exists():
    return False
  best = _best(setup, state)
  params = setup.evaluated_params(best)
  if not tested:
    result = setup.evaluate(params, 'test')
    record_result(setup, step, 'test', result, of_step=int(best.step))
  if setup.config.sample.prompts:
    params = processes.gathered(params)
  if setup.is_main:
    _write_samples(setup, params)
  return True


def _best(setup: Setup, state: TrainState) -> TrainState:
  if not has_checkpoints(setup.work.best):
    return state
  return restore_whole(setup.work.best, setup.init, setup.mesh, setup.say)


def _write_samples(setup: Setup, params: dict) -> None:
  config, samples = setup.config, []
  for seed, prompt in enumerate(config.sample.prompts):
    text = continue_text(
      config, params, setup.corpus.vocabulary, prompt, config.sample, seed
    )
    samples.append({'prompt': prompt, 'text': text})
  write_json(setup.work.samples, samples)
  for first in samples[:1]:
    setup.say(f'Sample:\n{first["prompt"]}{first["text"]}')
