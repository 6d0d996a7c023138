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

EXAMPLES = """examples:
  txl plan --config=experiments/wt103_large.py --topology=v5e:16x16 \\
    --config.model.dtype=bfloat16 --config.train.batch_size=256
  txl plan --config=experiments/enwik8_large.py --topology=v5p:2x2x1 \\
    --traffic --config.mesh.fsdp=4 --config.model.dtype=bfloat16
  txl plan --config=experiments/quickstart.py

Compiles the training step for chips that need not be there and tells what each
of them would need: memory, operations, what they send to each other, and the
least time that a step can take. Nothing runs. A table goes to the standard
error, and one JSON object to the standard output; docs/tpu.md explains both.
"""
_UNITS = {'GB': 1e9, 'MB': 1e6, 'kB': 1e3, 'B': 1}


def add_plan(commands: Commands) -> None:
  """Declares `txl plan`."""
  parser = add_command(
    commands,
    'plan',
    plan,
    'What a training step needs of chips that need not be there.',
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
    '--traffic',
    action='store_true',
    help='count the traffic of main memory too: two more compilations',
  )


def plan(arguments: argparse.Namespace, rest: list[str]) -> int:
  """Compiles and reports.

  Raises:
    InputError: for a topology, a mesh or rows that do not go together.
  """
  config = read_config(arguments.config, rest)
  import jax

  from txl_jax.benchmark.plan import plan_training
  from txl_jax.parallel.topology import topology_devices

  if arguments.topology is None:
    devices = jax.devices()
  else:
    devices = topology_devices(arguments.topology)
  found = plan_training(config, devices, traffic=arguments.traffic, say=_say)
  found = {
    'config': arguments.config,
    'topology': arguments.topology,
    'jax': jax.__version__,
    **found,
  }
  _show(found)
  print(json.dumps(found))
  return 0


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
    _say('least time of a step, ms')
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
  taken = plan['attention']
  if taken == 'splash' or not plan['device_kind'].startswith('TPU'):
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
