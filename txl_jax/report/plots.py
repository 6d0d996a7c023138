"""Plots of a run as inline SVG that takes its colours from the page's CSS."""

import io
import math
import re
from typing import Any

Points = list[tuple[float, float]]  # (step, value), by step

# Stand-ins that matplotlib can draw with; `_inline` turns each into the CSS
# variable of its name, so that a plot is legible on light and on dark pages.
PAINT = {
  'page': '#010101',
  'muted': '#020202',
  'rule': '#030303',
  'train': '#040404',
  'validation': '#050505',
  'test': '#060606',
}
STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': PAINT['rule'],
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.labelcolor': PAINT['muted'],
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.xmargin': 0.02,
  'font.size': 12.0,
  'grid.color': PAINT['rule'],
  'grid.linewidth': 1.0,
  'lines.solid_capstyle': 'round',
  'savefig.facecolor': 'none',
  'svg.fonttype': 'none',
  'xtick.color': PAINT['rule'],
  'xtick.labelcolor': PAINT['muted'],
  'ytick.labelcolor': PAINT['muted'],
  'ytick.major.size': 0.0,
}
MARKS = {'train': '—', 'validation': '●', 'test': '◆'}  # in the legend
SETTLED = 0.1  # the part of a run whose values do not set the upper limit


def loss_figure(curves: dict[str, Points], unit: str) -> str:
  """The loss by step: training as a line, evaluations as marks.

  Args:
    curves: the points of `train`, `validation` and `test`; each may be empty.
    unit: of the values, the caption.

  Returns:
    A figure element: a wide plot, a narrow one for phones, and a legend.
  """
  legend = ''.join(
    f'<span><i class="{split}">{MARKS[split]}</i> {split}</span>'
    for split, points in curves.items()
    if points
  )
  sizes = {'wide': (800, 330), 'narrow': (360, 270)}
  drawn = '\n'.join(
    f'<div class="{name}">{_loss_plot(name, curves, unit, size)}</div>'
    for name, size in sizes.items()
  )
  caption = f'<figcaption><b>{unit}</b>{legend}</figcaption>'
  return f'<figure class="loss">{caption}\n{drawn}</figure>'


def small_figure(title: str, points: Points, *, settled: bool = False) -> str:
  """One quantity by step, from zero upwards.

  Args:
    title: the caption, another for each plot of a page.
    points: what to draw.
    settled: let the high values of the first steps leave the plot at the top.

  Returns:
    A figure element.
  """
  name = title.lower().replace(' ', '-')
  with _style(name):
    figure, axes = _axes((280, 160))
    _draw(axes, points, 'validation', linewidth=1)
    highest = max((value for _, value in points), default=0.0)
    top = _limits([points])[1] if settled else 1.08 * highest
    axes.set(xlim=(0, None), ylim=(0, top if top > 0 else 1))
    drawn = _svg(figure, name, title)
  return f'<figure><figcaption>{title}</figcaption>{drawn}</figure>'


def finite(value: Any) -> Any:
  """The value if it is a finite number, else None."""
  known = isinstance(value, int | float) and not isinstance(value, bool)
  return value if known and math.isfinite(value) else None


def short_number(value: float | None) -> str:
  """A number for a tick or a headline: 0.0003, 2.5, 20k, 1.5M."""
  if value is None:
    return '–'
  for unit, name in ((1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= 0.9995 * unit:  # rounds to the unit
      return f'{value / unit:.3g}{name}'
  return re.sub('e-0*', 'e-', f'{value:.4g}')


def _loss_plot(
  name: str, curves: dict[str, Points], unit: str, size: tuple[int, int]
) -> str:
  drawn_as = {
    'train': {'linewidth': 1.2},
    'validation': {'linewidth': 1.5, 'marker': 'o', 'markersize': 8},
    'test': {'linestyle': '', 'marker': 'D', 'markersize': 9},
  }
  with _style(name):
    figure, axes = _axes(size)
    for split, points in curves.items():
      _draw(axes, points, split, **drawn_as[split])
    limits = _limits(list(curves.values()))
    axes.set(xlabel='step', xlim=(0, None), ylim=limits)
    return _svg(figure, name, f'{unit} by step')


def _style(name: str) -> Any:
  """Our style alone, whatever the user's matplotlibrc says."""
  import matplotlib.style

  return matplotlib.style.context(['default', {**STYLE, 'svg.hashsalt': name}])


def _axes(size: tuple[int, int]) -> tuple[Any, Any]:
  """A figure of its own, apart from pyplot; 72 dots per inch, as in SVG."""
  from matplotlib import figure, ticker

  inches = (size[0] / 72, size[1] / 72)
  page = figure.Figure(figsize=inches, layout='constrained')
  axes = page.add_subplot()
  round_steps = [1, 2, 2.5, 5, 10]
  axes.xaxis.set_major_locator(
    ticker.MaxNLocator(size[0] // 70, integer=True, steps=round_steps)
  )
  axes.yaxis.set_major_locator(ticker.MaxNLocator(size[1] // 45))
  axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
  axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
  return page, axes


def _draw(axes: Any, points: Points, color: str, **kwargs: Any) -> None:
  if len(points) == 1:
    kwargs.setdefault('marker', 'o')  # a line of one point is invisible
  steps, values = zip(*points) if points else ((), ())
  halo = {'markeredgecolor': PAINT['page'], 'markeredgewidth': 1.5}
  axes.plot(steps, values, color=PAINT[color], **halo, **kwargs)


def _limits(curves: list[Points]) -> tuple[float, float]:
  """A range that shows the run once the first steep fall is over."""
  points = [point for points in curves for point in points]
  if not points:
    return 0.0, 1.0
  first = SETTLED * max(step for step, _ in points)
  low = min(value for _, value in points)
  high = max(value for step, value in points if step >= first)
  margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
  return low - margin, high + margin


def _svg(figure: Any, name: str, title: str) -> str:
  file = io.StringIO()
  figure.savefig(file, format='svg')
  return _inline(file.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
  """Makes a file of matplotlib's a part of a page, next to others."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>\s*', '', svg, flags=re.DOTALL)
  svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)
  # The page sizes the plot; the viewBox keeps its proportions.
  svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', svg)
  for variable, color in PAINT.items():
    svg = svg.replace(color, f'var(--{variable})')
  described = f'<svg role="img" aria-label="{title}"'
  return svg.replace('<svg', described, 1).strip()
