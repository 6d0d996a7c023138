"""Loading ahead changes no order and hides no error."""

import threading
import time

import pytest

from txl_jax.data.prefetch import prefetch


@pytest.mark.parametrize(('first', 'last'), [(0, 5), (3, 4), (2, 2), (0, 1)])
@pytest.mark.parametrize('ahead', [0, 1, 2, 9])
def test_steps_come_in_order(first, last, ahead):
  found = list(prefetch(lambda step: step * 10, first, last, ahead))
  assert found == [step * 10 for step in range(first, last)]


def test_it_loads_while_nobody_waits():
  begun = threading.Event()

  def load(step: int) -> int:
    if step == 1:
      begun.set()
    return step

  steps = prefetch(load, 0, 3)
  assert next(steps) == 0
  assert begun.wait(5)  # nobody has asked for it
  assert list(steps) == [1, 2]


def test_an_error_comes_at_its_step():
  def load(step: int) -> int:
    if step == 2:
      raise OSError('gone')
    return step

  found = []
  with pytest.raises(OSError, match='gone'):
    for step in prefetch(load, 0, 9):
      found.append(step)
  assert found == [0, 1]


def test_giving_up_stops_the_thread():
  before = threading.active_count()
  steps = prefetch(lambda step: time.sleep(0.01), 0, 100)
  next(steps)
  steps.close()
  assert threading.active_count() == before
