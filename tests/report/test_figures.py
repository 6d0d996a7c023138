"""Plots of analyses: nothing sticks out, and the same data is the same file."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from txl_jax.evaluation.effective_context import effective_context
from txl_jax.report import attention, curves, figures
from txl_jax.report.effective_context import effective_context_figure

DRAW = np.random.default_rng(0)


def _sweep():
  lines = [
    {'memory_length': m, 'ppl': 1234.5 - m / 9, 'tokens_per_second': 1.2e6}
    for m in (0, 640, 3800)
  ]
  return curves.sweep_figure(lines, 'ppl', 640)


def _fragmentation():
  places = np.arange(1, 513), DRAW.random(512)
  names = ['with_memory', 'a_long_name_of_a_run_without_memory']
  return curves.fragmentation_figure(
    {name: places for name in names}, 'nats per token'
  )


def _speed():
  lines = [
    {
      'attention_length': length,
      'milliseconds_per_token': 0.02,
      'vanilla_milliseconds_per_token': length / 50,
      'ratio': float(length),
      'published_ratio': 1874,
    }
    for length in (800, 1800, 2800, 3800)
  ]
  return curves.speed_figure(lines)


def _effective_context():
  contexts = list(range(100, 1001, 100))
  losses_ICP = DRAW.random((5, 10, 30))
  results = [effective_context(losses_ICP, contexts, r) for r in (0.1, 0.5, 1)]
  names = [f'a_rather_long_name_{i}' for i in range(5)]
  return effective_context_figure(names, contexts, losses_ICP, results)


def _average():
  return attention.average_figure(DRAW.dirichlet(np.ones(640), (24, 8)))


def _terms():
  return attention.terms_figure(DRAW.normal(size=(4, 1, 1, 20)))


def _example():
  texts = ['a', ' ', '$', '\n', 'antidisestablishmentarianism', '<unk>']
  return attention.example_figure(DRAW.dirichlet(np.ones(9), (2, 4)), texts)


FIGURES = [
  *(_sweep, _fragmentation, _speed, _effective_context),
  *(_average, _terms, _example),
]


@pytest.mark.parametrize('make', FIGURES)
def test_nothing_sticks_out(make, monkeypatch):
  pages, rendered = [], figures._rendered

  def keep(page, suffix):
    pages.append(page)
    return rendered(page, suffix)

  monkeypatch.setattr(figures, '_rendered', keep)
  made = make()
  assert made['.png'].startswith(b'\x89PNG')
  assert ET.fromstring(made['.svg']).tag.endswith('svg')
  page = pages[0]
  width, height = page.get_size_inches()
  box = page.get_tightbbox()
  assert min(box.x0, box.y0) >= -0.01
  assert box.x1 <= width + 0.01 and box.y1 <= height + 0.01
  for axes in page.axes:
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
      boxes = [x.get_window_extent() for x in labels if _is_shown(axes, x)]
      for one, other in zip(boxes, boxes[1:]):
        assert not one.overlaps(other)


def _is_shown(axes, label) -> bool:
  """Whether a tick's label is one of those within the axes' limits."""
  (x0, x1), (y0, y1) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
  x, y = label.get_position()
  # The other coordinate is a share of the axes.
  inside = x0 <= x <= x1 if y in (0, 1) else y0 <= y <= y1
  return inside and bool(label.get_text())


def test_the_same_data_is_the_same_file():
  assert _sweep() == _sweep()


def test_an_axis_of_close_values_has_them_written_out():
  def draw(page):
    page.subplots().plot([0, 1, 2], [2.54001, 2.54002, 2.54004])

  svg = figures.picture((4, 3), draw)['.svg'].decode()
  assert '2.54002' in svg and '+2.54' not in svg
