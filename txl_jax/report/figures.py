"""Figures that stand alone: the same plot as PNG and as SVG."""

import io
from collections.abc import Callable
from typing import Any

Picture = dict[str, bytes]  # suffix -> content

# Told apart by people who do not see all colours, and in this order.
COLORS = ('#0b62a4', '#d1661f', '#2d8a57', '#8f4ba8', '#97801d', '#3c4650')
MUTED, RULE = '#59626b', '#d5d9de'
STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': MUTED,
  # Values that are close are still read as they are.
  'axes.formatter.useoffset': False,
  'axes.grid': True,
  'axes.labelcolor': MUTED,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 11.0,
  'figure.titlesize': 12.0,
  'font.size': 10.0,
  'grid.color': RULE,
  'grid.linewidth': 0.8,
  'legend.frameon': False,
  'lines.linewidth': 1.8,
  'lines.markersize': 5.0,
  'savefig.dpi': 160.0,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'txl_jax',
  'xtick.color': MUTED,
  'ytick.color': MUTED,
}


def picture(size: tuple[float, float], draw: Callable[[Any], None]) -> Picture:
  """Draws a figure, in our style alone.

  Args:
    size: width and height in inches.
    draw: gets a matplotlib figure and draws on it.
  """
  import matplotlib.style
  from matplotlib import figure

  with matplotlib.style.context(['default', STYLE]):
    page = figure.Figure(figsize=size, layout='constrained')
    draw(page)
    return {suffix: _rendered(page, suffix) for suffix in ('.png', '.svg')}


def _rendered(page: Any, suffix: str) -> bytes:
  file = io.BytesIO()
  # Without the date: the same data, the same file.
  metadata = {'Date': None} if suffix == '.svg' else None
  page.savefig(file, format=suffix[1:], metadata=metadata)
  return file.getvalue()


def color_of(number: int) -> str:
  """The colour of the n-th curve."""
  return COLORS[number % len(COLORS)]


def plain_numbers(axis: Any) -> None:
  """Whole numbers instead of powers of ten on a logarithmic axis."""
  from matplotlib import ticker

  axis.set_major_formatter(lambda value, _: f'{value:,.6g}')
  axis.set_minor_formatter(ticker.NullFormatter())
