"""Measures how the cost grows with the length of the memory, and draws it.

python docs/make_linear_cost.py FOLDER [LONGEST]

Two layers of the small enwik8 model, one row, segments of 512, memories of 512
to LONGEST (default 65,536) tokens; the lines of `txl bench` go to
FOLDER/cost.jsonl, the plot to docs/linear_cost.svg.
"""

import contextlib
import io
import json
import pathlib
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

from txl_jax.cli import main as txl  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = [
  f'--config={ROOT / "experiments" / "enwik8_base.py"}',
  '--batch=1',
  '--config.model.n_layers=2',
  '--config.model.dtype=bfloat16',
]
SHORTEST = SEGMENT = 512


def main(folder: str, longest: str = '65536') -> None:
  """Measures, writes the lines and draws."""
  lengths = [SHORTEST]
  while lengths[-1] < int(longest):
    lengths.append(2 * lengths[-1])
  # The allocator's peak, all there is of evaluation, only rises.
  lines = [_measure(what, n) for what in ('eval', 'train') for n in lengths]
  path = pathlib.Path(folder) / 'cost.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  _draw(lines)


def _measure(what: str, memory_length: int) -> dict:
  """The line of `txl bench`."""
  options = {
    'train': [
      '--steps=5',
      f'--config.model.memory_length={memory_length}',
      f'--config.train.segment_length={SEGMENT}',
    ],
    'eval': [
      '--steps=5',
      f'--memory={memory_length}',
      f'--segment={SEGMENT}',
      '--config.eval.attention_span=None',
      '--config.eval.clamp_length=None',
    ],
  }
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    code = txl(['bench', what, *MODEL, *options[what]])
  if code:
    sys.exit(code)
  line = {'what': what, **json.loads(said.getvalue())}
  size = line.get('step_memory_bytes') or line['peak_memory_bytes']
  line['gigabytes'] = float('nan') if size is None else size / 1e9
  print(
    f'{what} {memory_length:,}: {line["milliseconds"]:.3f} ms, '
    f'{line["gigabytes"]:.3f} GB',
    flush=True,
  )
  return line


def _draw(lines: list[dict]) -> None:
  figure, (time, size) = plt.subplots(1, 2, figsize=(8, 3.2))
  for what, label, colour in (
    ('train', 'training step', '#3b6fb6'),
    ('eval', 'evaluation, forward', '#c8553d'),
  ):
    found = [line for line in lines if line['what'] == what]
    lengths = [line['memory'] / 1000 for line in found]
    style = dict(marker='o', markersize=4, label=label, color=colour)
    time.plot(lengths, [line['milliseconds'] for line in found], **style)
    size.plot(lengths, [line['gigabytes'] for line in found], **style)
  for axes, title in ((time, 'ms a segment'), (size, 'memory, GB')):
    axes.set(ylim=0, xlabel='memory, thousands of tokens', title=title)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(color='#dddddd', linewidth=0.6)
  time.legend(frameon=False)
  path = ROOT / 'docs' / 'linear_cost.svg'
  figure.savefig(path, bbox_inches='tight', metadata={'Date': None})


if __name__ == '__main__':
  main(*sys.argv[1:])
