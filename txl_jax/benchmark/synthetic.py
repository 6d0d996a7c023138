"""Text for measurements: ids as frequent as words are, in no order."""

import numpy as np

from txl_jax.config import TrainConfig
from txl_jax.data.streams import Batch
from txl_jax.model.operations import natural_frequencies


def random_batch(vocab_size: int, train: TrainConfig, seed: int) -> Batch:
  """A batch of a training step, one document in all rows.

  Args:
    vocab_size: ids are drawn from 0 to vocab_size - 1, low ones more often.
    train: sizes of the batch.
    seed: of the draws.
  """
  shape = (train.segments_per_step, train.batch_size, train.segment_length)
  n_segments, n_rows, length = shape
  ids = np.random.default_rng(seed).choice(
    vocab_size,
    size=(n_segments, n_rows, length + 1),
    p=natural_frequencies(vocab_size),
  )
  ids = ids.astype(np.int32)
  return Batch(ids[..., :-1], ids[..., 1:], np.zeros(shape, bool))
