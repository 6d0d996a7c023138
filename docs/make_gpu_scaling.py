"""Draws how training scales over the devices of a host.

python docs/make_gpu_scaling.py FILE...

Each FILE has the lines that `txl bench train --devices=...` printed, one
command after the other; the plot goes to docs/gpu_scaling.svg. Dotted lines are
what the first number of devices would reach if nothing were lost.
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

PICTURE = pathlib.Path(__file__).resolve().parent / 'gpu_scaling.svg'
COLOURS = ['#3b6fb6', '#c8553d', '#5f9e6e', '#8a63a8', '#b8860b', '#4aa3a2']
STYLES = {'weak': '-', 'strong': '--'}
Series = list[dict]  # the lines of a command


def main(*paths: str) -> None:
  """Reads the lines and draws them."""
  if not paths:
    sys.exit(__doc__.strip())
  read = (pathlib.Path(path).read_text() for path in paths)
  series = [each for text in read for each in commands(text)]
  _draw(sorted(series, key=label))


def commands(text: str) -> list[Series]:
  """The lines of each command, by the number of devices.

  A command measures one experiment, and each number of devices once.
  """
  found = []
  for line in map(json.loads, text.splitlines()):
    own = found[-1] if found else []
    known = {each['devices'] for each in own}
    if line['devices'] in known or not own or _what(line) != _what(own[0]):
      found.append([])
    found[-1].append(line)
  return [sorted(own, key=lambda line: line['devices']) for own in found]


def _what(line: dict) -> tuple:
  return line['config'], line['scaling'], line['dtype']


def label(own: Series) -> str:
  """Of a command: experiment, axes of the mesh, and rows."""
  first = own[0]
  name = first['config'].rpartition('/')[2].replace('.py', '')
  sizes = [line['mesh'] for line in own]
  axes = [axis for axis in sizes[0] if any(mesh[axis] > 1 for mesh in sizes)]
  rows = f'{first["batch"]} rows'
  if first['scaling'] == 'weak':
    rows = f'{first["batch"] / first["devices"]:g} rows a device'
  return f'{name}, {" x ".join(axes) or "one device"}, {rows}'


def _draw(series: list[Series]) -> None:
  figure, (efficiency, speed) = plt.subplots(1, 2, figsize=(8, 3.2))
  counts = sorted({line['devices'] for own in series for line in own})
  for i, own in enumerate(series):
    n = [line['devices'] for line in own]
    style = dict(
      marker='o',
      markersize=4,
      linestyle=STYLES[own[0]['scaling']],
      color=COLOURS[i % len(COLOURS)],
    )
    percent = [100 * line['efficiency'] for line in own]
    efficiency.plot(n, percent, label=label(own), **style)
    tokens = [line['tokens_per_second'] / 1000 for line in own]
    ideal = [tokens[0] / n[0] * count for count in (0, max(n))]
    speed.plot((0, max(n)), ideal, ':', color=style['color'], linewidth=1)
    speed.plot(n, tokens, **style)
  reached = [line['efficiency'] for own in series for line in own]
  lowest = 50 if min(reached) > 0.5 else 0
  efficiency.set_ylim(lowest, 105 * max(reached))
  speed.set_ylim(bottom=0)
  efficiency.axhline(100, color='#999999', linewidth=0.8, zorder=0)
  for axes, title in (
    (efficiency, 'efficiency, %'),
    (speed, 'thousands of tokens a second'),
  ):
    axes.set(xlabel='devices', title=title, xticks=counts)
    axes.set(xlim=(0, 1.05 * counts[-1]))
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(color='#dddddd', linewidth=0.6)
  figure.legend(
    loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False
  )
  figure.savefig(PICTURE, bbox_inches='tight', metadata={'Date': None})


if __name__ == '__main__':
  main(*sys.argv[1:])
