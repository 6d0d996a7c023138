"""Plots of analyses that are curves."""

from typing import Any

import numpy as np

from txl_jax.report.figures import (
  MUTED,
  Picture,
  color_of,
  picture,
  plain_numbers,
)

UNITS = {'bpc': 'bits per character', 'ppl': 'perplexity'}


def sweep_figure(lines: list[dict], measure: str, trained_with: int) -> Picture:
  """The loss, and the speed, by the length of the memory.

  Args:
    lines: of `evaluation/memory_sweep.py`.
    measure: what losses are given as, 'bpc' or 'ppl'.
    trained_with: the memory of training.
  """
  lengths = [line['memory_length'] for line in lines]

  def draw(page: Any) -> None:
    loss, speed = page.subplots(1, 2)
    panels = (
      (loss, [line[measure] for line in lines], UNITS[measure]),
      (speed, [line['tokens_per_second'] for line in lines], 'tokens a second'),
    )
    for number, (axes, values, title) in enumerate(panels):
      axes.axvline(trained_with, color=MUTED, linestyle=':', linewidth=1.2)
      axes.plot(lengths, values, marker='o', color=color_of(number))
      axes.set(title=title, xlabel='memory (tokens)', xlim=(0, None))
      axes.margins(y=0.12)
    loss.annotate(
      ' as trained',
      (trained_with, 1),
      xycoords=('data', 'axes fraction'),
      va='top',
      color=MUTED,
    )
    speed.set_ylim(0, None)
    speed.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')

  return picture((9, 3.6), draw)


def fragmentation_figure(
  curves: dict[str, tuple[np.ndarray, np.ndarray]], unit: str
) -> Picture:
  """The loss by place in the segment.

  Args:
    curves: by name of the model, places from 1 on and losses.
    unit: of the losses.
  """

  def draw(page: Any) -> None:
    axes = page.subplots()
    for number, (name, (place, loss)) in enumerate(curves.items()):
      axes.plot(place, loss, marker='o', color=color_of(number), label=name)
    axes.set_xscale('log', base=2)
    plain_numbers(axes.xaxis)
    axes.set(title=unit, xlabel='place in the segment')
    axes.legend()

  return picture((6, 3.8), draw)


def speed_figure(lines: list[dict]) -> Picture:
  """Time per token by attention length, with memory and recomputing it.

  Args:
    lines: of `benchmark/slowdown.py`.
  """
  lengths = [line['attention_length'] for line in lines]
  curves = {
    'recomputing the context': 'vanilla_milliseconds_per_token',
    'with memory': 'milliseconds_per_token',
  }

  def draw(page: Any) -> None:
    axes = page.subplots()
    for number, (name, field) in enumerate(curves.items()):
      values = [line[field] for line in lines]
      axes.plot(lengths, values, marker='o', color=color_of(number), label=name)
    axes.set_yscale('log')
    axes.margins(x=0.15, y=0.25)
    plain_numbers(axes.yaxis)
    axes.set_xticks(lengths, [f'{length:,}' for length in lengths])
    title = 'milliseconds a token, and how many times more'
    axes.set(title=title, xlabel='attention length (tokens)')
    for line, length in zip(lines, lengths):
      published = line['published_ratio']
      axes.annotate(
        f'{line["ratio"]:,.0f} x'
        + (f'\n(paper: {published:,} x)' if published else ''),
        (length, line['vanilla_milliseconds_per_token']),
        xytext=(0, 10),
        textcoords='offset points',
        ha='center',
        color=MUTED,
      )
    page.legend(loc='outside lower center', ncols=2)

  return picture((6.5, 4), draw)
