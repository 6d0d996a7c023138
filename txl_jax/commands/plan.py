"""`txl plan`."""

import argparse
import json
import sys

from txl_jax.commands.arguments import (
  Commands,
  add_command,
  add_config,
  fields_help,
  read_config,
)
from txl_jax.config import Config
from txl_jax.errors import InputError

EXAMPLES = """examples:
  txl plan --config=experiments/wt103_large.py --topology=v5e:16x16 \\
    --config.model.dtype=bfloat16 --config.train.batch_size=256
  txl plan --config=experiments/enwik8_large.py --topology=v5p:2x2x1 \\
    --config.mesh.fsdp=4 --config.model.dtype=bfloat16
  txl plan --config=experiments/wt103_large.py --topology=v6e:2x4 \\
    --program=eval --batch=64
  txl plan --config=experiments/quickstart.py

Compiles the training step, a call of evaluation (eight segments) or a block of
64 generated tokens for chips that need not be there, and tells what each of
them would need: memory, operations, what they send to each other, and the least
time that it can take. Nothing runs. A table goes to the standard
error, and one JSON object to the standard output; docs/tpu.md explains both.
"""
_UNIT = {
  'train': 'a step',
  'eval': 'eight segments',
  'generate': '64 tokens',
}
PROGRAMS = tuple(_UNIT)
_UNITS = {'GB': 1e9, 'MB': 1e6, 'kB': 1e3, 'B': 1}


def add_plan(commands: Commands) -> None:
  """Declares `txl plan`."""
  parser = add_command(
    commands,
    'plan',
    plan,
    'What training and inference need of chips that need not be there.',
    epilog=f'{EXAMPLES}\n{fields_help()}',
  )
  add_config(parser)
  add = parser.add_argument
  add(
    '--topology',
    metavar='CHIP:SHAPE',
    help='v4, v5e, v5p or v6e, and a shape: v5e:16x16 (default: this machine)',
  )
  add(
    '--program',
    choices=PROGRAMS,
    default='train',
    help='what is compiled (default train)',
  )
  add(
    '--batch',
    type=int,
    help="rows of all chips together (default: the experiment's; texts that "
    'one chip generates at once: 1)',
  )


def plan(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Compiles and reports.

  Raises:
    InputError: for a topology, a mesh or rows that do not go together.
  """
  program, batch = arguments.program, arguments.batch
  if batch is not None and batch < 1:
    raise InputError(f'--batch must be at least 1, found {batch}')
  if batch is not None and program != 'generate':
    rest = [*rest, f'--config.{program}.batch_size={batch}']
  config = read_config(arguments.config, rest)
  found = {
    'config': arguments.config,
    'topology': arguments.topology,
    **_plan(arguments, config),
  }
  _show(found)
  print(json.dumps(found))
  return 0


def _plan(arguments: argparse.Namespace, config: Config) -> dict:
  import jax

  from txl_jax.benchmark import plan_inference
  from txl_jax.benchmark.plan import plan_training
  from txl_jax.parallel.topology import topology_devices

  if arguments.topology is None:
    devices = jax.devices()
  else:
    devices = topology_devices(arguments.topology)
  if arguments.program == 'train':
    found = plan_training(config, devices, say=_say)
  elif arguments.program == 'eval':
    found = plan_inference.plan_evaluation(config, devices, say=_say)
  else:
    n_rows = arguments.batch or 1
    found = plan_inference.plan_generation(config, devices, n_rows, say=_say)
  return {'jax': jax.__version__, **found}


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _show(plan: dict) -> None:
  """Prints the table."""
  mesh = ', '.join(f'{name} {size}' for name, size in plan['mesh'].items())
  _say(f'\n{plan["devices"]} x {plan["device_kind"]}; mesh {mesh}')
  _say(
    f'{plan["parameters"]:,} parameters, {plan["batch"]} rows of '
    f'{plan["segment"]}, memory {plan["memory"]}, {plan["dtype"]}'
  )
  if 'attention' in plan:
    _say(f'attention by {_attention(plan)}')
  _say('')
  _say('memory of a chip')
  for name, size in plan['bytes'].items():
    _say(f'  {name:<12}{_size(size):>10}')
  _say(f'  {_verdict(plan)}')
  if plan.get('milliseconds'):
    _say(f'least time of {_UNIT[plan["program"]]}, ms')
    for name, time in plan['milliseconds'].items():
      limit = '  <- the limit' if name == plan['limited_by'] else ''
      _say(f'  {name:<12}{time:>10.3f}{limit}')
    _say(f'  at most {plan["tokens_per_second"]:,.0f} tokens/s')
  for each in plan.get('collectives', ()):
    _say(
      f'{each["kind"]} over {", ".join(each["axes"]) or "one device"}: '
      f'{each["count"]} times, {_size(each["payload"])}; a chip sends '
      f'{_size(each["sent"])}'
    )


def _attention(plan: dict) -> str:
  taken, training = plan['attention'], plan['program'] == 'train'
  on_tpu = plan['device_kind'].startswith('TPU')
  if taken == 'splash' or not (training and on_tpu):
    return taken
  return (
    f'{taken}, which writes the scores to main memory; the kernel needs '
    "config.model.position_dropout='feature' (or dropout 0), "
    'attention_dropout=0 and clamp_length=None'
  )


def _verdict(plan: dict) -> str:
  needed = plan['needed_bytes']
  said = 'needed' if needed is None else f'{"needed":<12}{_size(needed):>10}'
  if plan['fits'] is None:
    return said
  if plan['fits']:
    return f'{said}: fits'
  if plan['program'] != 'train':
    return f'{said}: does NOT fit; lower --batch or config.eval.memory_length'
  return (
    f'{said}: does NOT fit; lower config.train.batch_size, raise '
    'config.train.row_chunks, set config.model.remat=True, or divide the '
    'parameters with config.mesh.fsdp'
  )


def _size(n_bytes: float) -> str:
  """Bytes, in the unit that leaves a number below 1,000."""
  unit = 'GB'
  for smaller in ('MB', 'kB', 'B'):
    if n_bytes >= _UNITS[unit]:
      break
    unit = smaller
  return f'{n_bytes / _UNITS[unit]:.3g} {unit}'
