"""Streams: the segments of step i follow from i alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from txl_jax.errors import InputError


class Batch(NamedTuple):
  """S consecutive segments of B rows.

  Attributes:
    tokens_SBT: int32 ids.
    targets_SBT: int32, the ids that follow them.
    starts_SBT: bool, True where a token begins a document.
  """

  tokens_SBT: np.ndarray
  targets_SBT: np.ndarray
  starts_SBT: np.ndarray


class TrainStream:
  """A corpus as B endless rows that read on where the last step stopped.

  The corpus is taken as a ring and the rows start at equal distances on it, so
  a row that has read its part goes on with the next row's, in full context,
  and no token is left out. The first token of the ring counts as the start of
  a document: the ring's seam is never seen across.

  With `roll` each row is a ring of its own, which every epoch enters at another
  place: segments are cut differently each time.
  """

  def __init__(
    self,
    tokens: np.ndarray,
    boundary: int | None,
    *,
    batch_size: int,
    segment_length: int,
    segments_per_step: int,
    roll: bool = False,
    seed: int = 0,
    rows: slice = slice(None),
  ):
    """Checks that there is text enough.

    Args:
      tokens: ids of the train split [n].
      boundary: the id that begins a document, if the text has any.
      batch_size: rows B.
      segment_length: T.
      segments_per_step: S.
      roll: whether each epoch begins elsewhere.
      seed: of the places.
      rows: those that this host reads.
    """
    self.tokens = tokens
    self.boundary = boundary
    self.shape = (segments_per_step, batch_size, segment_length)
    self.roll = roll
    self.seed = seed
    self.rows = rows
    needed = batch_size * segments_per_step * segment_length
    if len(tokens) < needed:
      raise InputError(
        f'the train split has {len(tokens):,} tokens, fewer than the '
        f'{needed:,} of one step (config.train: batch_size {batch_size} x '
        f'segments_per_step {segments_per_step} x segment_length '
        f'{segment_length})'
      )

  def __getitem__(self, step: int) -> Batch:
    """The batch of a step, counted from 0."""
    n_segments, n_rows, length = self.shape
    row_B = np.arange(n_rows)[self.rows]
    column = np.arange(n_segments * length + 1)
    place = self._rolled if self.roll else self._on_the_ring
    position, starts = place(step, row_B[:, None], column)
    read = self.tokens[position]
    starts |= _begins(read, self.boundary)

    def split(rows: np.ndarray, kind: type) -> np.ndarray:
      segments_BST = rows.reshape(len(row_B), n_segments, length)
      return np.ascontiguousarray(segments_BST.swapaxes(0, 1), kind)

    return Batch(
      split(read[:, :-1], np.int32),
      split(read[:, 1:], np.int32),
      split(starts[:, :-1], np.bool_),
    )

  def _on_the_ring(
    self, step: int, row_B1: np.ndarray, column: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the text, and which of them begin a document."""
    n_segments, n_rows, length = self.shape
    start = row_B1 * len(self.tokens) // n_rows
    offset = step * n_segments * length + column
    position = (start + offset) % len(self.tokens)
    return position, position == 0

  def _rolled(
    self, step: int, row_B1: np.ndarray, column: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    n_segments, n_rows, length = self.shape
    per_row = len(self.tokens) // n_rows
    per_step = n_segments * length
    epoch, step = divmod(step, per_row // per_step)
    random = np.random.default_rng((self.seed, epoch))
    shift_B1 = random.integers(0, per_row, n_rows)[row_B1]
    column = step * per_step + column
    place = (shift_B1 + column) % per_row
    # An epoch does not go on where the last one ended.
    return row_B1 * per_row + place, (place == 0) | (column == 0)


def _begins(tokens: np.ndarray, boundary: int | None) -> np.ndarray:
  if boundary is None:
    return np.zeros(tokens.shape, np.bool_)
  return tokens == boundary


def eval_batches(
  tokens: np.ndarray,
  boundary: int | None,
  *,
  batch_size: int,
  segment_length: int,
  segments: int,
  warmup: int = 0,
  starts: np.ndarray | None = None,
) -> Iterator[tuple[Batch, np.ndarray]]:
  """A split in B contiguous rows, each of its n - 1 targets scored once.

  Row r begins with the last token of row r - 1 as input, so no target is lost
  between rows; the tail is padded. With a warm-up rows begin earlier, as far
  as there is text, and read what the row before them scores.

  Args:
    tokens: ids of the split [n].
    boundary: the id that begins a document.
    batch_size: rows B.
    segment_length: T.
    segments: S, segments in a batch.
    warmup: tokens that each row reads before those that it scores.
    starts: bool [n], further tokens that begin a document.

  Yields:
    Batches, and which target stands where, int64 [S, B, T]: target i follows
    token i; -1 where none is scored.
  """
  n_targets = len(tokens) - 1
  per_row = -(-n_targets // batch_size)
  # The last row has the most text before it.
  warmup = min(warmup, (batch_size - 1) * per_row)
  n_segments = -(-(per_row + warmup) // segment_length)
  n_batches = -(-n_segments // segments)
  column = np.arange(n_batches * segments * segment_length) - warmup
  row_B11 = np.arange(batch_size)[:, None, None]
  for column_ST in column.reshape(n_batches, segments, segment_length):
    position_BST = row_B11 * per_row + column_ST
    inside_BST = (position_BST >= 0) & (position_BST < n_targets)
    inside_BST &= column_ST < per_row
    position_SBT = np.where(inside_BST, position_BST, 0).swapaxes(0, 1)
    inside_SBT = inside_BST.swapaxes(0, 1)
    batch = _gather(tokens, boundary, position_SBT, starts)
    if warmup:
      # What stands before the text is padding.
      batch.starts_SBT[position_SBT == 0] = True
    batch.starts_SBT[~inside_SBT] = False
    scored_SBT = inside_SBT & (column_ST >= 0)[:, None]
    yield batch, np.where(scored_SBT, position_SBT, -1)


def sliding_batches(
  tokens: np.ndarray,
  boundary: int | None,
  *,
  batch_size: int,
  segment_length: int,
  stride: int,
  segments: int,
  starts: np.ndarray | None = None,
) -> Iterator[tuple[Batch, np.ndarray]]:
  """A split in overlapping windows, each of its n - 1 targets scored once.

  The first window is scored whole, of each later one the last `stride` targets,
  which have at least segment_length - stride tokens before them. This is how a
  model without memory is evaluated (Dai et al. 2019, figure 1b).

  Args:
    tokens: ids of the split [n].
    boundary: the id that begins a document.
    batch_size: windows B at once.
    segment_length: T, the length of a window.
    stride: by how many tokens the window moves.
    segments: S, how often B windows are in a batch.
    starts: bool [n], further tokens that begin a document.

  Yields:
    Batches of independent windows, and which target stands where, as
    `eval_batches`.
  """
  n_targets = len(tokens) - 1
  n_windows = 1 + max(0, -(-(n_targets - segment_length) // stride))
  per_batch = segments * batch_size
  column_T = np.arange(segment_length)
  for low in range(0, n_windows, per_batch):
    window = low + np.arange(per_batch).reshape(segments, batch_size, 1)
    position = window * stride + column_T
    new = (window == 0) | (column_T >= segment_length - stride)
    inside = (position < n_targets) & (window < n_windows)
    batch = _gather(tokens, boundary, np.where(inside, position, 0), starts)
    yield batch, np.where(new & inside, position, -1)


def _gather(
  tokens: np.ndarray,
  boundary: int | None,
  position_SBT: np.ndarray,
  starts: np.ndarray | None,
) -> Batch:
  tokens_SBT = tokens[position_SBT].astype(np.int32)
  targets_SBT = tokens[position_SBT + 1].astype(np.int32)
  starts_SBT = _begins(tokens_SBT, boundary)
  if starts is not None:
    starts_SBT |= starts[position_SBT]
  return Batch(tokens_SBT, targets_SBT, starts_SBT)
