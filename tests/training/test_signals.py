"""Nothing comes between a signal and the loop that asks for it."""

from test_checkpoint import _state

from txl_jax.training.checkpoint import Checkpoints


def test_the_loop_alone_asks_for_signals(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    'jax.experimental.multihost_utils.reached_preemption_sync_point',
    lambda step: bool(asked.append(step)),
  )
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 2):
    checkpoints.save(_state(step), {})
  checkpoints.close()
  assert checkpoints.steps() == [1, 2] and not asked
