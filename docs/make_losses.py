"""Trains a small model in several ways, and draws the losses together.

python docs/make_losses.py precision TEXT FOLDER
python docs/make_losses.py kernel TEXT FOLDER

TEXT is any file of a few megabytes. Runs go to FOLDER, and go on there if they
were interrupted; the plot goes to docs/precision.svg or docs/kernel.svg. The
second run differs from the first by its seed alone: that is the noise. Options
behind FOLDER, such as --config.model.d_ff=2048, go to all of them.
"""

import json
import pathlib
import subprocess
import sys

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, EVERY = 1000, 20
DTYPE = '--config.model.dtype={}'.format
ATTENTION = '--config.model.attention_implementation={}'.format
SEED = '--config.train.seed=1'
RUNS = {
  'precision': {
    'float32': [DTYPE('float32')],
    'float32, another seed': [DTYPE('float32'), SEED],
    'bfloat16': [DTYPE('bfloat16')],
  },
  'kernel': {
    'xla': [DTYPE('bfloat16'), ATTENTION('xla')],
    'xla, another seed': [DTYPE('bfloat16'), ATTENTION('xla'), SEED],
    'mosaic_gpu': [DTYPE('bfloat16'), ATTENTION('mosaic_gpu')],
  },
}
COLOURS = ['#3b6fb6', '#9db7da', '#c8553d']


def main(what: str, text: str, folder: str, *more: str) -> None:
  """Trains, prints the validation losses, and draws."""
  curves = {}
  for name, options in RUNS[what].items():
    work = pathlib.Path(folder) / name.replace(', ', '_').replace(' ', '_')
    _train(text, work, [*options, *more])
    curves[name] = _lines(work)
    last = [line for line in curves[name] if line['split'] == 'validation'][-1]
    print(f'{name}: validation loss {last["loss"]:.4f}', flush=True)
  _draw(curves, ROOT / 'docs' / f'{what}.svg')


def _train(text: str, work: pathlib.Path, options: list[str]) -> None:
  command = [
    *(sys.executable, '-m', 'txl_jax', 'train'),
    '--config=experiments/quickstart.py',
    f'--workdir={work}',
    f'--config.data.path={pathlib.Path(text).absolute()}',
    f'--config.train.steps={STEPS}',
    f'--config.train.eval_every_steps={STEPS}',
    f'--config.train.log_every_steps={EVERY}',
    '--config.sample.prompts=()',
    *options,
  ]
  ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  if ended.returncode:
    # It has said why.
    sys.exit(ended.returncode)


def _lines(work: pathlib.Path) -> list[dict]:
  text = (work / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _draw(curves: dict[str, list[dict]], path: pathlib.Path) -> None:
  figure, (loss, difference) = plt.subplots(
    2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1)
  )
  first = next(iter(curves))
  base = _by_step(curves[first])
  for (name, lines), colour in zip(curves.items(), COLOURS):
    points = _by_step(lines)
    loss.plot(points.keys(), points.values(), label=name, color=colour)
    if name != first:
      gaps = [points[step] - base[step] for step in points]
      difference.plot(points.keys(), gaps, color=colour)
  loss.set_ylabel('training loss, nats')
  loss.set_ylim(top=3.5)
  loss.legend(frameon=False)
  difference.axhline(0, color='#999999', linewidth=0.8)
  difference.set_ylabel(f'minus {first}')
  difference.set_ylim(-0.2, 0.2)
  difference.set_xlabel('step')
  for axes in (loss, difference):
    axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, bbox_inches='tight', metadata={'Date': None})


def _by_step(lines: list[dict]) -> dict[int, float]:
  return {
    line['step']: line['loss'] for line in lines if line['split'] == 'train'
  }


if __name__ == '__main__':
  if len(sys.argv) < 4 or sys.argv[1] not in RUNS:
    sys.exit(__doc__)
  main(*sys.argv[1:])
