"""Rows filled with shuffled sentences, as the paper trains One Billion Word."""

import threading
from typing import NamedTuple

import numpy as np

from txl_jax.data.streams import Batch
from txl_jax.errors import InputError

# The state of the filling is kept every so many steps.
KEPT_EVERY = 1000


class _State(NamedTuple):
  """Where the filling stands: immutable, so that it can be kept."""

  epoch: int
  taken: int  # sentences of the epoch that rows have begun
  next_B: tuple[int, ...]  # the position each row reads next
  left_B: tuple[int, ...]  # pairs of input and target left in its sentence


class SentenceStream:
  """Sentences in random order; a row that has read one takes the next.

  A sentence between two marks with n tokens in all gives n - 1 pairs of input
  and target. A row reads it over as many segments as it takes and then begins
  the next that no row has begun; rows are filled one after another. Each epoch
  has an order of its own. Sentences that do not fill a batch at its end are
  left out, and all rows begin anew, as in the paper's code.

  Any step can be asked for; asked for in order a step costs only itself.
  """

  def __init__(
    self,
    tokens: np.ndarray,
    mark: int,
    *,
    batch_size: int,
    segment_length: int,
    segments_per_step: int,
    seed: int = 0,
    rows: slice = slice(None),
  ):
    """Finds the sentences.

    Args:
      tokens: ids, each sentence between two marks [n].
      mark: the id of the mark.
      batch_size: rows B.
      segment_length: T.
      segments_per_step: S.
      seed: of the order.
      rows: those that this host reads.

    Raises:
      InputError: if marks do not come in pairs, or for less than one step.
    """
    marks = np.flatnonzero(tokens == mark)
    self.first, last = marks[::2], marks[1::2]
    if len(marks) % 2 or (self.first[1:] != last[:-1] + 1).any():
      raise InputError(
        'the train split must hold sentences, each between two marks'
      )
    self.pairs = last - self.first
    self.tokens = tokens
    self.shape = (segments_per_step, batch_size, segment_length)
    self.seed = seed
    self.rows = rows
    self._lock = threading.Lock()
    self._order = (-1, np.zeros(0, np.int64))
    self._kept = {0: self._begin(0)}
    self._newest = (0, self._kept[0])
    if self._segment(self._kept[0]) is None:
      raise InputError(
        f'the train split has {self.pairs.sum():,} tokens in sentences, too '
        f'few to fill batch_size {batch_size} rows of segment_length '
        f'{segment_length} (config.train)'
      )

  def __getitem__(self, step: int) -> Batch:
    """The batch of a step, counted from 0."""
    with self._lock:
      position_SBT = self._positions(step)
    position_SBT = position_SBT[:, self.rows]
    return Batch(
      self.tokens[position_SBT].astype(np.int32),
      self.tokens[position_SBT + 1].astype(np.int32),
      np.zeros(position_SBT.shape, np.bool_),
    )

  def _positions(self, step: int) -> np.ndarray:
    """Where the inputs of a step stand in the text [S, B, T]."""
    at, state = self._newest
    if at > step:
      at = max(kept for kept in self._kept if kept <= step)
      state = self._kept[at]
    while True:
      segments = []
      for _ in range(self.shape[0]):
        filled = self._segment(state)
        # Sentences have run out: the next epoch.
        filled = filled or self._segment(self._begin(state.epoch + 1))
        segments.append(filled[0])
        state = filled[1]
      at += 1
      if at % KEPT_EVERY == 0:
        self._kept[at] = state
      if at > step:
        self._newest = (at, state)
        return np.stack(segments)

  def _begin(self, epoch: int) -> _State:
    nothing = (0,) * self.shape[1]
    return _State(epoch, 0, nothing, nothing)

  def _segment(self, state: _State) -> tuple[np.ndarray, _State] | None:
    """Positions [B, T] of the next segment; None if it cannot be filled."""
    _, n_rows, length = self.shape
    order, taken = self._permutation(state.epoch), state.taken
    position_BT = np.empty((n_rows, length), np.int64)
    ends = []
    for row, (place, left) in enumerate(zip(state.next_B, state.left_B)):
      filled = 0
      while filled < length:
        if not left:
          if taken == len(order):
            return None
          place, left = self.first[order[taken]], self.pairs[order[taken]]
          taken += 1
        new = min(left, length - filled)
        position_BT[row, filled : filled + new] = np.arange(place, place + new)
        place, left, filled = place + new, left - new, filled + new
      ends.append((int(place), int(left)))
    return position_BT, _State(state.epoch, taken, *zip(*ends))

  def _permutation(self, epoch: int) -> np.ndarray:
    if self._order[0] != epoch:
      random = np.random.default_rng((self.seed, epoch))
      self._order = (epoch, random.permutation(len(self.first)))
    return self._order[1]
