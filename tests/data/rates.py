"""How fast text becomes ids, against a plain loop of Python in the same run.

python tests/data/rates.py FILE
"""

import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np

from txl_jax.data.streams import TrainStream
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.data.words import WordVocabulary

TIMES = 9


def main(path: str) -> None:
  """Prints the rates and their ratios."""
  raw = pathlib.Path(path).read_bytes()
  words, own_bytes = WordVocabulary.of([raw]), ByteVocabulary()
  table = {word: i for i, word in enumerate(words.words)}
  compare('words', lambda: plain(raw, table), lambda: words.encode(raw))
  compare('bytes', lambda: plain_bytes(raw), lambda: own_bytes.encode(raw))
  sizes = dict(batch_size=16, segment_length=64, segments_per_step=1)
  stream = TrainStream(own_bytes.encode(raw), own_bytes.boundary, **sizes)
  seconds = fastest(lambda: [stream[i] for i in range(500)])
  print(f'loader  {500 * 16 * 64 / seconds / 1e6:.1f} M tokens/s')


def plain(raw: bytes, table: dict[str, int]) -> np.ndarray:
  """Words, and an end after each line, as a loop finds them."""
  ids = []
  for line in raw.decode().splitlines():
    for word in line.split():
      ids.append(table[word])
    ids.append(table['<eos>'])
  return np.array(ids, np.uint16)


def plain_bytes(raw: bytes) -> np.ndarray:
  """Bytes, as a loop finds them."""
  ids = []
  for byte in raw:
    ids.append(byte)
  return np.array(ids, np.uint16)


def compare(name: str, slow: Callable, fast: Callable) -> None:
  """Prints the rate of the fast one, and the ratio."""
  assert (slow() == fast()).all()
  seconds, loop = fastest(fast), fastest(slow)
  rate = len(fast()) / seconds / 1e6
  print(f'{name}   {rate:.1f} M/s, {loop / seconds:.1f} times a loop')


def fastest(function: Callable) -> float:
  """Seconds of the fastest of several calls."""
  found = []
  for _ in range(TIMES):
    began = time.perf_counter()
    function()
    found.append(time.perf_counter() - began)
  return min(found)


if __name__ == '__main__':
  main(sys.argv[1])
