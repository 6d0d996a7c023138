"""Loading ahead of the step."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import TypeVar

Loaded = TypeVar('Loaded')


def prefetch(
  load: Callable[[int], Loaded], first: int, last: int, ahead: int = 2
) -> Iterator[Loaded]:
  """What `load` returns for the steps from first to last - 1, in order.

  One thread loads, so that reading the text and handing it to the device take
  place while the device computes.

  Args:
    load: step -> anything; what it raises is raised where it is waited for.
    first: the first step.
    last: the step after the last.
    ahead: how many steps are loaded before they are asked for.
  """
  waiting: collections.deque = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for step in range(first, last + ahead):
      if step < last:
        waiting.append(pool.submit(load, step))
      if step >= first + ahead:
        yield waiting.popleft().result()
