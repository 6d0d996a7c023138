"""Trains in float32 and in bfloat16, and draws both losses.

python docs/make_precision.py TEXT FOLDER

TEXT is any file of a few megabytes; runs go to FOLDER, the plot to
docs/precision.svg. Two runs in float32 differ by their seed: that is the noise.
"""

import json
import pathlib
import subprocess
import sys

import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, EVERY = 1000, 20
RUNS = {
  'float32': ['--config.model.dtype=float32'],
  'float32, another seed': ['--config.train.seed=1'],
  'bfloat16': ['--config.model.dtype=bfloat16'],
}
COLOURS = ['#3b6fb6', '#9db7da', '#c8553d']


def main(text: str, folder: str) -> None:
  """Trains, prints the validation losses, and draws."""
  curves = {}
  for name, options in RUNS.items():
    work = pathlib.Path(folder) / name.replace(', ', '_').replace(' ', '_')
    _train(text, work, options)
    curves[name] = _lines(work)
    [last] = [x for x in curves[name] if x['split'] == 'validation']
    print(f'{name}: validation loss {last["loss"]:.4f}', flush=True)
  _draw(curves)


def _train(text: str, work: pathlib.Path, options: list[str]) -> None:
  command = [sys.executable, '-m', 'txl_jax', 'train', f'--workdir={work}']
  command += [
    '--config=experiments/quickstart.py',
    f'--config.data.path={text}',
  ]
  command += [f'--config.train.steps={STEPS}']
  command += [f'--config.train.eval_every_steps={STEPS}']
  command += [f'--config.train.log_every_steps={EVERY}']
  command += ['--config.sample.prompts=()', *options]
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _lines(work: pathlib.Path) -> list[dict]:
  return list(
    map(json.loads, (work / 'metrics.jsonl').read_text().splitlines())
  )


def _draw(curves: dict[str, list[dict]]) -> None:
  figure, (loss, difference) = plt.subplots(
    2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1)
  )
  base = _by_step(curves['float32'])
  for (name, lines), colour in zip(curves.items(), COLOURS):
    points = _by_step(lines)
    loss.plot(points.keys(), points.values(), label=name, color=colour)
    if name != 'float32':
      gaps = [points[step] - base[step] for step in points]
      difference.plot(points.keys(), gaps, color=colour)
  loss.set_ylabel('training loss, nats')
  loss.set_ylim(top=3.5)
  loss.legend(frameon=False)
  difference.axhline(0, color='#999999', linewidth=0.8)
  difference.set_ylabel('less float32')
  difference.set_ylim(-0.2, 0.2)
  difference.set_xlabel('step')
  for axes in (loss, difference):
    axes.spines[['top', 'right']].set_visible(False)
  figure.savefig(ROOT / 'docs' / 'precision.svg', bbox_inches='tight')


def _by_step(lines: list[dict]) -> dict[int, float]:
  return {x['step']: x['loss'] for x in lines if x['split'] == 'train'}


if __name__ == '__main__':
  main(*sys.argv[1:])
