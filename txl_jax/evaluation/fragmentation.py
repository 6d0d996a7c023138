"""Loss by place in the segment (Dai et al. 2019, section 3.1).

A model without memory knows nothing at the beginning of a segment: the loss is
high there and falls along it, which the paper calls context fragmentation. With
memory all places should be alike.
"""

import numpy as np


def loss_by_place(
  losses: np.ndarray, segment_length: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """The mean loss of each place in a segment.

  Args:
    losses: of all targets in order [n - 1], read without warm-up.
    segment_length: T.
    batch_size: contiguous rows in which they were read.

  Returns:
    Means [T], NaN where no target stands, and how many targets each is of [T].
  """
  per_row = -(-len(losses) // batch_size)
  place = np.arange(len(losses)) % per_row % segment_length
  count_T = np.bincount(place, minlength=segment_length)
  total_T = np.bincount(place, losses.astype(np.float64), segment_length)
  with np.errstate(invalid='ignore'):
    return total_T / count_T, count_T


def grouped(
  mean_T: np.ndarray, count_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The means of groups of places that widen along the segment.

  One place is a noisy mean; but the first places differ most and stand alone.

  Returns:
    The middle of each group, as a place counted from 1, and its mean.
  """
  length = len(mean_T)
  # About six groups for each doubling.
  edges = np.unique(np.round(2 ** np.arange(0, np.log2(length) + 0.17, 1 / 6)))
  # The last group is no narrower than those before it.
  edges = np.append(edges[edges <= 0.9 * length + 1], length + 1).astype(int)
  middles, means = [], []
  for low, high in zip(edges[:-1], edges[1:]):
    inside = slice(low - 1, high - 1)
    count = count_T[inside].sum()
    if count:
      total = np.nansum(mean_T[inside] * count_T[inside])
      means.append(total / count)
      middles.append((low + high - 1) / 2)
  return np.array(middles), np.array(means)
