"""The plots of `txl attention`."""

import json
from typing import Any

import numpy as np

from txl_jax.evaluation.attention_maps import TERMS
from txl_jax.report.figures import MUTED, Picture, picture

# Attention is shown from this on; below it all is white.
FAINTEST = 1e-4


def average_figure(average_NHW: np.ndarray) -> Picture:
  """Mean attention, a row for each head, the layers from top to bottom."""

  def draw(page: Any) -> None:
    axes = page.subplots()
    image = _heads(axes, average_NHW, **_shades())
    axes.set_title('attention, mean over the queries')
    page.colorbar(image, ax=axes, label='share of the attention')

  return picture((8, _height(average_NHW)), draw)


def terms_figure(terms_4NHW: np.ndarray) -> Picture:
  """The four terms of the scores, each head's own mean taken off.

  What a head adds to all of its scores alike changes no attention.
  """
  centred_4NHW = terms_4NHW - terms_4NHW.mean(axis=-1, keepdims=True)

  def draw(page: Any) -> None:
    panels = page.subplots(2, 2, sharex=True, sharey=True).ravel()
    for letter, name, axes, term_NHW in zip(
      'abcd', TERMS, panels, centred_4NHW
    ):
      # A few scores far off would leave the rest without colour.
      limit = float(np.quantile(np.abs(term_NHW), 0.995)) or 1.0
      image = _heads(axes, term_NHW, cmap='RdBu_r', vmin=-limit, vmax=limit)
      axes.set_title(f'({letter}) {name}')
      page.colorbar(image, ax=axes)
    for axes in panels[:2]:
      axes.set_xlabel('')
    for axes in panels[1::2]:
      axes.set_ylabel('')

  height = 2 * _height(terms_4NHW[0]) - 0.6
  return picture((11, height), draw)


def example_figure(example_NHW: np.ndarray, texts: list[str]) -> Picture:
  """Attention of one query to the tokens before it.

  Args:
    example_NHW: its attention by distance.
    texts: of the tokens up to the query, in order; as many are shown.
  """
  shown, labels = len(texts), [_label(text) for text in texts]
  longest = max(map(len, labels))
  in_order_NHW = example_NHW[..., :shown][..., ::-1]

  def draw(page: Any) -> None:
    axes = page.subplots()
    image = _heads(axes, in_order_NHW, **_shades())
    axes.set_title('attention of the last token, for one example')
    axes.set_xlabel('token')
    turned = 90 if longest > 2 else 0
    axes.set_xticks(range(shown), labels, rotation=turned, family='monospace')
    axes.tick_params(axis='x', labelsize=8)
    page.colorbar(image, ax=axes, label='share of the attention')

  height = _height(example_NHW) + 0.07 * longest
  return picture((max(6.0, 2.5 + 0.16 * shown), height), draw)


def _shades() -> dict:
  from matplotlib import colors

  return {'cmap': 'Blues', 'norm': colors.LogNorm(FAINTEST, 1, clip=True)}


def _heads(axes: Any, map_NHX: np.ndarray, **kwargs: Any) -> Any:
  """A picture with a row for each head and lines between layers."""
  from matplotlib import ticker

  n_layers, n_heads, width = map_NHX.shape
  rows = map_NHX.reshape(n_layers * n_heads, width)
  image = axes.imshow(rows, aspect='auto', interpolation='nearest', **kwargs)
  axes.grid(False)
  for layer in range(1, n_layers):
    axes.axhline(layer * n_heads - 0.5, color=MUTED, linewidth=0.6)
  # Layers may stand too close for a label each.
  every = max(1, round(n_layers * 0.22 / _height(map_NHX)))
  layers = np.arange(0, n_layers, every)
  middles = layers * n_heads + (n_heads - 1) / 2
  axes.set_yticks(middles, (layers + 1).tolist())
  axes.tick_params(axis='y', length=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(9, integer=True))
  axes.set(xlabel='tokens before the query', ylabel=f'layer ({n_heads} heads)')
  return image


def _height(map_NHX: np.ndarray) -> float:
  """Inches."""
  rows = map_NHX.shape[0] * map_NHX.shape[1]
  return min(9.0, 2.4 + 0.06 * rows)


def _label(text: str) -> str:
  """A token as it can be printed."""
  if text == ' ':
    return '_'
  return json.dumps(text, ensure_ascii=False)[1:-1][:14].replace('$', r'\$')
