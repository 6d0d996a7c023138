"""The command line: `python -m txl_jax COMMAND`, or `txl COMMAND`.

Commands import what they need when they run, so that `--help` and mistakes are
answered at once.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

from txl_jax.errors import InputError, Interrupted, TrainingError


def main(argv: list[str] | None = None) -> int:
  """Runs a command; the exit code is 2 for bad input."""
  arguments, rest = _parser().parse_known_args(argv)
  try:
    return arguments.run(arguments, rest)
  except InputError as error:
    return _fail(error, 2)
  except TrainingError as error:
    return _fail(error, 1)
  except Interrupted as notice:
    return _fail(notice, 77)
  except BrokenPipeError:
    # The reader of our output (`| head`) has gone; stay silent at exit too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except KeyboardInterrupt:
    return _fail('interrupted; run the same command to go on', 130)


def _fail(message: object, code: int) -> int:
  print(f'txl: {message}', file=sys.stderr)
  return code


def _parser() -> argparse.ArgumentParser:
  from txl_jax.benchmark.command import add_bench
  from txl_jax.overrides import field_names

  parser = argparse.ArgumentParser(
    prog='txl',
    description='Transformer-XL: train, evaluate, generate, report.',
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(
    title='commands', metavar='COMMAND', required=True
  )

  def command(name: str, run: object, text: str, epilog: str = '') -> object:
    sub = commands.add_parser(
      name,
      help=text,
      description=text,
      epilog=epilog,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument('--workdir', required=True, help='folder of the run')
    sub.set_defaults(run=run)
    return sub

  fields = f'Set any field with --config.SECTION.FIELD=VALUE:\n{field_names()}'
  train = command(
    'train', _train, 'Train, or go on training, and report.', fields
  )
  train.add_argument('--config', required=True, help='experiment, FILE.py')
  prepare = commands.add_parser(
    'prepare',
    help='Download or read a text, make it into tokens, and describe it.',
    description='Prepare the text of an experiment, and describe it.',
    epilog=fields,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  prepare.add_argument('--config', required=True, help='experiment, FILE.py')
  prepare.set_defaults(run=_prepare)
  evaluate = command(
    'eval',
    _evaluate,
    'Score a split; the last line is JSON.',
    'Change the settings of the evaluation with --config.eval.FIELD=VALUE.',
  )
  evaluate.add_argument(
    '--split', default='test', choices=('train', 'validation', 'test')
  )
  _add_checkpoint(evaluate)
  generate = command('generate', _generate, 'Continue a prompt.')
  _add_checkpoint(generate)
  _add_generate(generate)
  command('report', _report, 'Write report.html anew.')
  add_bench(commands, fields)
  return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--checkpoint',
    default='best',
    choices=('best', 'last'),
    help='of the lowest validation loss (default), or the newest',
  )


def _add_generate(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--prompt', default='', help='text that begins a document')
  add('--length', type=int, help='tokens to generate')
  add('--temperature', type=float, help='0 = always the most likely token')
  add('--top_k', type=int, help='draw from the k most likely tokens')
  add('--top_p', type=float, help='draw from the tokens of this total share')
  add('--seed', type=int, default=0, help='of the draws (default 0)')


def _prepare(arguments: argparse.Namespace, rest: list[str]) -> int:
  from txl_jax.conversion import from_config_dict
  from txl_jax.overrides import apply_overrides, load_experiment

  values = apply_overrides(load_experiment(arguments.config), rest)
  config = from_config_dict(values)
  from txl_jax.data.corpora import load_corpus
  from txl_jax.data.description import describe

  corpus = load_corpus(config.data, _say)
  print(describe(corpus, config.model.d_model, config.model.div_val))
  return 0


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
  from txl_jax.conversion import from_config_dict
  from txl_jax.overrides import apply_overrides, load_experiment

  values = apply_overrides(load_experiment(arguments.config), rest)
  config = from_config_dict(values)
  from txl_jax.parallel import processes

  processes.start_processes(preemption=True)
  from txl_jax.report.page import write_report
  from txl_jax.training.finish import finish
  from txl_jax.training.loop import train
  from txl_jax.training.setup import set_up

  setup = set_up(config, arguments.workdir, _say)
  state = train(setup)
  if not finish(setup, state):
    setup.say(
      f'{setup.work.path} is finished: {int(state.step):,} steps, see '
      f'{setup.work.report}\nStart over with `rm -r {setup.work.path}`, or go '
      'on with a larger --config.train.steps.'
    )
  elif setup.is_main:
    setup.say(f'Report: {write_report(setup.work.path)}')
  return 0


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
  from txl_jax.training.run import load_run

  run = load_run(arguments.workdir, _say, rest, arguments.checkpoint)
  result = run.evaluate(arguments.split)
  print(
    json.dumps(
      {
        'split': arguments.split,
        **result.to_json(),
        'step': run.step,
        **dataclasses.asdict(run.config.eval),
      }
    )
  )
  return 0


def _generate(arguments: argparse.Namespace, rest: list[str]) -> int:
  _no_more(rest)
  from txl_jax.generation.text import continue_text
  from txl_jax.training.run import load_run

  run = load_run(arguments.workdir, _say, None, arguments.checkpoint)
  names = ('length', 'temperature', 'top_k', 'top_p')
  given = {name: getattr(arguments, name) for name in names}
  changes = {name: v for name, v in given.items() if v is not None}
  sample = dataclasses.replace(run.config.sample, **changes)
  text = continue_text(
    run.config,
    run.params,
    run.vocabulary,
    arguments.prompt,
    sample,
    arguments.seed,
  )
  print(arguments.prompt + text)
  return 0


def _report(arguments: argparse.Namespace, rest: list[str]) -> int:
  _no_more(rest)
  from txl_jax.report.page import write_report

  print(write_report(pathlib.Path(arguments.workdir)))
  return 0


def _no_more(rest: list[str]) -> None:
  if rest:
    raise InputError(f'{rest[0]!r} is no argument of this command')


def _say(line: str) -> None:
  import tqdm

  with tqdm.tqdm.external_write_mode():  # the progress bar makes way
    print(line, flush=True)
