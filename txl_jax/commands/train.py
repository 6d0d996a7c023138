"""`txl prepare` and `txl train`."""

import argparse

from txl_jax.commands.arguments import (
  Commands,
  add_command,
  add_config,
  add_workdir,
  fields_help,
  read_config,
  say,
)


def add_prepare(commands: Commands) -> None:
  """Declares `txl prepare`."""
  parser = add_command(
    commands,
    'prepare',
    prepare,
    'Download or read a text, make it into tokens, and describe it.',
    description='Prepare the text of an experiment, and describe it.',
    epilog=fields_help(),
  )
  add_config(parser)


def add_train(commands: Commands) -> None:
  """Declares `txl train`."""
  parser = add_command(
    commands,
    'train',
    train,
    'Train, or go on training, and report.',
    epilog=fields_help(),
  )
  add_workdir(parser)
  add_config(parser)


def prepare(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Prepares the text of an experiment."""
  config = read_config(arguments.config, rest)
  from txl_jax.data.corpora import load_corpus
  from txl_jax.data.description import describe

  corpus = load_corpus(config.data, say)
  print(describe(corpus, config.model.d_model, config.model.div_val))
  return 0


def train(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Trains, tests, samples and reports."""
  config = read_config(arguments.config, rest)
  from txl_jax.parallel import processes
  from txl_jax.parallel.compiled import keep_compiled

  processes.start_processes(preemption=True)
  keep_compiled()
  from txl_jax.report.page import write_report
  from txl_jax.training.finish import finish
  from txl_jax.training.loop import train as train_loop
  from txl_jax.training.setup import set_up

  setup = set_up(config, arguments.workdir, say)
  state = train_loop(setup)
  if not finish(setup, state):
    setup.say(
      f'{setup.work.path} is finished: {int(state.step):,} steps, see '
      f'{setup.work.report}\nStart over with `rm -r {setup.work.path}`, or go '
      'on with a larger --config.train.steps.'
    )
  elif setup.is_main:
    setup.say(f'Report: {write_report(setup.work.path)}')
  return 0
