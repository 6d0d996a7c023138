"""Prints how training would scale over TPUs, by the compiler's numbers.

  python docs/make_scaling.py experiments/wt103_large.py --rows=1,2,4,8 \\
    --config.model.dtype=bfloat16

needs the compiler of TPUs (pip install 'txl_jax[tpu]') and takes minutes. What
a chip computes and moves depends on its rows alone, and is counted on four
chips; what it sends are the gradients, whose bytes are counted on the same
four: a ring of n chips sends 2 (n - 1) / n of them. Nothing is measured.
"""

import argparse
import json
import subprocess
import sys

from txl_jax.parallel.chips import published

SLICE, KIND = 'v5p:2x2x1', 'TPU v5p'
CHIPS = (8, 32, 128, 512, 1024)


def main() -> None:
  """Prints a table in Markdown."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('config')
  parser.add_argument('--rows', default='1,2,4,8', help='of a chip')
  arguments, overrides = parser.parse_known_args()
  names = ('rows of a chip', 'chips', 'global batch', 'compute, ms')
  names += ('main memory, ms', 'network, ms', 'tokens/s', 'efficiency')
  print(f'| {" | ".join(names)} |')
  print(f'| {" | ".join("---" for _ in names)} |')
  for rows in map(int, arguments.rows.split(',')):
    plan = _plan(arguments.config, rows, overrides)
    for chips in CHIPS:
      print(f'| {" | ".join(_line(plan, rows, chips))} |', flush=True)


def _plan(config: str, rows: int, overrides: list[str]) -> dict:
  command = [sys.executable, '-m', 'txl_jax', 'plan', f'--config={config}']
  command += [f'--topology={SLICE}', f'--batch={4 * rows}']
  run = subprocess.run(
    [*command, *overrides], stdout=subprocess.PIPE, check=True, text=True
  )
  return json.loads(run.stdout)


def _line(plan: dict, rows: int, chips: int) -> list[str]:
  payload = sum(each['payload'] for each in plan['collectives'])
  sent = 2 * (chips - 1) / chips * payload
  times = (
    plan['milliseconds']['compute'],
    plan['milliseconds']['main memory'],
    1e3 * sent / published(KIND).network,
  )
  tokens = chips * rows * plan['segment'] / max(times) * 1e3
  return [
    *(f'{rows}', f'{chips:,}', f'{chips * rows:,}'),
    *(f'{time:.2f}' for time in times),
    *(f'{tokens:,.0f}', f'{100 * times[0] / max(times):.0f} %'),
  ]


if __name__ == '__main__':
  main()
