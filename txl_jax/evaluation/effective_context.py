"""Relative effective context length (Dai et al. 2019, section 4.3, table 8).

How much context a model makes use of, measured within a group of models. With
l_i(c, t) the loss of model i at token t given c tokens of context:

  b(c, t) = min_i l_i(c, t)            the best model of the group with c
  T = the share r of the tokens with the highest b(c, t)
  f_i(c, c') = mean over T of min(b(c, t), l_i(c', t))
  g_i(c, c') = (exp f_i(c, c) - exp f_i(c, c')) / exp f_i(c, c)

c grows by steps as long as the relative gain g_i(c, c + step) is at least 0.01;
the last c is the relative effective context length of model i. Since all models
are held against the same b, a worse model does not gain by having more to gain.
"""

import dataclasses

import numpy as np

THRESHOLD = 0.01


@dataclasses.dataclass(frozen=True)
class EffectiveContext:
  """What a group of I models makes of C contexts.

  Attributes:
    share: r, of the tokens that count.
    gains_IC: relative gain of each model from context c to the next, [I, C-1].
    lengths_I: relative effective context length of each model.
    bounded_I: False where even the longest context was a gain, so that the
      length may be larger.
  """

  share: float
  gains_IC: np.ndarray
  lengths_I: np.ndarray
  bounded_I: np.ndarray

  def to_json(self) -> dict:
    """The same, for JSON."""
    return {
      'share': self.share,
      'gains': self.gains_IC.tolist(),
      'lengths': self.lengths_I.tolist(),
      'bounded': self.bounded_I.tolist(),
    }


def effective_context(
  losses_ICP: np.ndarray,
  contexts_C: np.ndarray,
  share: float,
  threshold: float = THRESHOLD,
) -> EffectiveContext:
  """The relative effective context lengths of a group of models.

  Args:
    losses_ICP: of I models, given C contexts, at P tokens; natural log.
    contexts_C: their lengths, rising by equal steps.
    share: r, the share of the tokens that count, those hardest for the best
      model.
    threshold: relative gain that a step must bring at least.
  """
  losses_ICP = np.asarray(losses_ICP, np.float64)
  best_CP = losses_ICP.min(axis=0)
  gains_IC = np.stack(
    [
      _gains(best_CP[c], losses_ICP[:, c + 1], share)
      for c in range(len(contexts_C) - 1)
    ],
    axis=1,
  )
  # The first step that brings too little; the last context if none does.
  enough_IC = gains_IC >= threshold
  steps_I = np.cumprod(enough_IC, axis=1).sum(axis=1)
  lengths_I = np.asarray(contexts_C)[steps_I]
  bounded_I = steps_I < len(contexts_C) - 1
  return EffectiveContext(share, gains_IC, lengths_I, bounded_I)


def _gains(
  best_P: np.ndarray, longer_IP: np.ndarray, share: float
) -> np.ndarray:
  """g_i(c, c') of all models, from b(c, .) and l_i(c', .)."""
  n_hard = max(1, round(share * len(best_P)))
  hard = np.argsort(-best_P, kind='stable')[:n_hard]
  before = np.exp(best_P[hard].mean())
  after_I = np.exp(np.minimum(best_P, longer_IP)[:, hard].mean(axis=1))
  return (before - after_I) / before


def sampled_positions(n_tokens: int, longest: int, count: int) -> np.ndarray:
  """Tokens at equal distances, each with `longest` tokens before it.

  Args:
    n_tokens: of the text.
    longest: context that each must have.
    count: how many; fewer if there are no more.
  """
  count = min(count, n_tokens - longest)
  return np.linspace(longest, n_tokens - 1, count).astype(np.int64)
