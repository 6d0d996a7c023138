"""The plot of `txl recl`."""

from typing import Any

import numpy as np

from txl_jax.evaluation.effective_context import THRESHOLD, EffectiveContext
from txl_jax.report.figures import MUTED, Picture, color_of, picture


def effective_context_figure(
  names: list[str],
  contexts: list[int],
  losses_ICP: np.ndarray,
  results: list[EffectiveContext],
) -> Picture:
  """The loss by context, then the gains for each share of the tokens.

  Args:
    names: of the models.
    contexts: lengths C.
    losses_ICP: of I models at P tokens.
    results: one for each share.
  """

  def draw(page: Any) -> None:
    panels = page.subplots(1, 1 + len(results))
    for i, name in enumerate(names):
      mean_C = losses_ICP[i].mean(axis=1)
      panels[0].plot(
        contexts, mean_C, marker='o', color=color_of(i), label=name
      )
    panels[0].set(title='loss (nats a token)', xlabel='context (tokens)')
    for axes, result in zip(panels[1:], results):
      _gains(axes, contexts, result)
    page.legend(loc='outside lower center', ncols=min(len(names), 4))

  return picture((3.4 * (1 + len(results)), 3.8), draw)


def _gains(axes: Any, contexts: list[int], result: EffectiveContext) -> None:
  """Relative gain of each step, and where it becomes too small."""
  for i, gains_C in enumerate(result.gains_IC):
    color = color_of(i)
    axes.plot(contexts[:-1], 100 * gains_C, marker='.', color=color)
    length = int(result.lengths_I[i])
    if length in contexts[:-1]:
      gain = 100 * gains_C[contexts.index(length)]
      axes.plot(length, gain, marker='o', markersize=9, color=color)
  axes.axhline(100 * THRESHOLD, color=MUTED, linestyle=':', linewidth=1.2)
  title = f'gain by a longer context, r = {result.share:g} (%)'
  axes.set(title=title, xlabel='context (tokens)')
  axes.title.set_fontsize(10)
