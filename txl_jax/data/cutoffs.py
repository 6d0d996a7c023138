"""Cutoffs of the adaptive softmax from how often each token occurs."""

import numpy as np

# Ranks that are tried as cutoffs: so many, evenly spaced in the logarithm.
CANDIDATES = 60


def expected_operations(
  counts_V: np.ndarray, cutoffs: tuple[int, ...], d_model: int, div_val: int
) -> float:
  """Multiplications a token that the adaptive softmax needs on average.

  The head (the first cluster and one column for each other) is computed for
  every token, a cluster only for tokens in it, each after its projection.

  Args:
    counts_V: how often each id occurs in the training text.
    cutoffs: ascending ids; () is the plain softmax.
    d_model: width of the model.
    div_val: cluster i has the width d_model // div_val**i.
  """
  bounds = (0, *cutoffs, len(counts_V))
  total = _cost(0, bounds[1] + len(cutoffs), d_model, div_val)
  share_V = counts_V / counts_V.sum()
  for i, (low, high) in enumerate(zip(bounds[1:], bounds[2:]), 1):
    share = share_V[low:high].sum()
    total += share * _cost(i, high - low, d_model, div_val)
  return float(total)


def _cost(i: int, columns: int, d_model: int, div_val: int) -> float:
  width = max(d_model // div_val**i, 1)
  projection = d_model * width if div_val > 1 else 0
  return projection + width * columns


def propose_cutoffs(
  counts_V: np.ndarray, d_model: int, div_val: int, n_cutoffs: int = 3
) -> tuple[int, ...]:
  """The cutoffs with the fewest expected operations.

  Where clusters get narrower the first one keeps at least the share of the
  vocabulary that it has in the paper's models (20,000 of 267,735 words): what
  is saved beyond that is paid for in perplexity.

  Args:
    counts_V: how often each id occurs, ids ordered by frequency.
    d_model: width of the model.
    div_val: division of the width from cluster to cluster.
    n_cutoffs: how many at most; fewer where they do not help.

  Returns:
    Ascending ids, rounded to two digits; () for a vocabulary that is too small.
  """
  size = len(counts_V)
  if size < 2000:
    return ()
  first = size * 20_000 / 267_735 if div_val > 1 else 200
  steps = np.geomspace(first, size - 1, CANDIDATES)
  ranks = sorted({_rounded(step) for step in steps if _rounded(step) < size})
  options = [()]
  for n in range(1, n_cutoffs + 1):
    options.append(_best_path(counts_V, ranks, d_model, div_val, n))

  def cost(cutoffs: tuple[int, ...]) -> float:
    return expected_operations(counts_V, cutoffs, d_model, div_val)

  return min(options, key=cost)


def _rounded(rank: float) -> int:
  digit = 10 ** (int(np.log10(rank)) - 1)
  return int(round(rank / digit) * digit)


def _best_path(
  counts_V: np.ndarray,
  ranks: list[int],
  d_model: int,
  div_val: int,
  n_cutoffs: int,
) -> tuple[int, ...]:
  """Dynamic programming over the cutoffs from the last to the first."""
  size, share = len(counts_V), np.cumsum(counts_V / counts_V.sum())

  def tail(i: int, low: int, high: int) -> float:
    inside = share[high - 1] - share[low - 1]
    return inside * _cost(i, high - low, d_model, div_val)

  # rank -> cost and cutoffs from cluster i on, which begins at the rank.
  best = {low: (tail(n_cutoffs, low, size), (low,)) for low in ranks}
  for i in range(n_cutoffs - 1, 0, -1):
    best = {
      low: min(
        (tail(i, low, high) + cost, (low, *path))
        for high, (cost, path) in best.items()
        if high > low
      )
      for low in ranks
      if any(high > low for high in best)
    }
  return min(
    (cost + _cost(0, low + n_cutoffs, d_model, div_val), path)
    for low, (cost, path) in best.items()
  )[1]
