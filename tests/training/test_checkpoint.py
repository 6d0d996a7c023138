"""Checkpoints give back every bit, or say that they cannot."""

import functools
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from txl_jax.errors import InputError
from txl_jax.parallel.mesh import make_mesh, state_shardings
from txl_jax.training.checkpoint import (
  Checkpoints,
  abstract_state,
  restore_whole,
)
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import TrainState, init_state

METER = {'loss': 1.1, 'tokens': 3, 'characters': 2}


def _init(memory_length: int = 4):
  """The function that makes a fresh state; never run here."""
  shape = dict(vocab_size=300, n_layers=2, n_heads=2, d_model=32, d_head=4)
  model = ModelConfig(**shape, d_ff=64, memory_length=memory_length)
  config = Config(model, train=TrainConfig(batch_size=8))
  return functools.partial(
    init_state, config, make_optimizer(OptimizerConfig(), 5)
  )


def _state(step: int, n_devices: int = 8, memory_length: int = 4) -> TrainState:
  """A state of random leaves, as it lies on the devices in training."""
  shapes = jax.eval_shape(_init(memory_length))
  random = np.random.default_rng(step)

  def draw(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(step + 100)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return random.integers(0, 9, leaf.shape).astype(leaf.dtype)
    return random.normal(size=leaf.shape).astype(leaf.dtype)

  state = jax.tree.map(draw, shapes).replace(step=np.int32(step))
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  return jax.device_put(state, state_shardings(mesh, shapes))


def _abstract(n_devices: int = 8, memory_length: int = 4) -> TrainState:
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  return abstract_state(_init(memory_length), mesh)


def _bits(leaf) -> tuple:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    key = np.asarray(jax.random.key_data(leaf))
    return str(leaf.dtype), leaf.shape, key.tobytes()
  return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def _same(a: TrainState, b: TrainState) -> bool:
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(_bits(x) == _bits(y) for x, y in leaves)


def _save(folder: pathlib.Path, *states: TrainState, keep: int = 9) -> None:
  checkpoints = Checkpoints(folder, keep)
  for state in states:
    checkpoints.save(state, {**METER, 'tokens': int(state.step)})
  checkpoints.close()


def _restore(folder: pathlib.Path, **where) -> tuple:
  """What is restored, and what was said."""
  said = []
  checkpoints = Checkpoints(folder, 9)
  restored = checkpoints.restore(_abstract(**where), said.append)
  checkpoints.close()
  return restored, said


@pytest.mark.parametrize(
  ('saved_on', 'restored_on', 'memory_length'),
  [(8, 8, 4), (8, 1, 4), (1, 8, 4), (2, 4, 4), (8, 8, 0), (8, 1, 0)],
)
def test_every_bit_comes_back(tmp_path, saved_on, restored_on, memory_length):
  state = _state(7, saved_on, memory_length)
  _save(tmp_path, state)
  restored, said = _restore(
    tmp_path, n_devices=restored_on, memory_length=memory_length
  )
  found, meter = restored
  assert _same(found, state)
  assert not said
  assert meter == {**METER, 'tokens': 7}
  assert found.memory.length == memory_length
  devices = found.memory.hidden_NBMD.sharding.device_set
  assert devices == set(jax.devices()[:restored_on])
  shards = found.memory.valid_B.addressable_shards
  assert {shard.data.shape for shard in shards} == {(8 // restored_on,)}


def test_comparing_sees_every_leaf():
  state = _state(7)
  assert _same(state, _state(7))
  assert not _same(state, _state(7).replace(key=jax.random.key(1)))
  leaves, structure = jax.tree.flatten(state)
  for i, leaf in enumerate(leaves):
    if leaf.dtype == np.float32:
      value = np.asarray(leaf).copy()
      value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
      changed = [*leaves[:i], value, *leaves[i + 1 :]]
      assert not _same(state, jax.tree.unflatten(structure, changed))


def test_the_newest_is_restored_and_old_ones_are_dropped(tmp_path):
  states = [_state(step) for step in (2, 4, 10)]
  _save(tmp_path, *states, keep=2)
  checkpoints = Checkpoints(tmp_path, 2)
  assert checkpoints.steps() == [4, 10]
  checkpoints.close()
  restored, said = _restore(tmp_path)
  assert _same(restored[0], states[2])
  assert not said


def test_without_checkpoints_there_is_nothing(tmp_path):
  restored, said = _restore(tmp_path / 'new')
  assert restored is None
  assert not said


def test_parameters_are_restored_for_evaluation(tmp_path):
  state = _state(7)
  _save(tmp_path, _state(3), state)
  # Three devices do not divide the rows, nor need they for evaluation.
  for n_devices in (1, 3, 8):
    mesh = make_mesh(devices=jax.devices()[:n_devices])
    restored = restore_whole(tmp_path, _init(), mesh, pytest.fail)
    assert int(restored.step) == 7
    for x, y in zip(
      jax.tree.leaves(restored.params),
      jax.tree.leaves(state.params),
      strict=True,
    ):
      assert _bits(x) == _bits(y)
      assert x.sharding.is_fully_replicated
  with pytest.raises(InputError, match='nowhere holds no checkpoint'):
    restore_whole(tmp_path / 'nowhere', _init(), make_mesh(), pytest.fail)
  assert not (tmp_path / 'nowhere').exists()


# Damage -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """A work directory with the checkpoints of steps 3 and 7."""
  work = tmp_path_factory.mktemp('saved')
  _save(work / 'checkpoints', _state(3), _state(7))
  return work


def _truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: pathlib.Path) -> None:
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


def _damage(saved, tmp_path, harm) -> list[str]:
  """Harms each file of the newest checkpoint in turn, in a fresh copy.

  Returns:
    Names of those without which the one before was restored.
  """
  newest = saved / 'checkpoints' / '7'
  files = [path for path in sorted(newest.rglob('*')) if path.is_file()]
  before, after, fell_back = _state(3), _state(7), []
  for i, path in enumerate(files):
    work = tmp_path / str(i)
    shutil.copytree(saved, work)
    harm(work / path.relative_to(saved))
    restored, said = _restore(work / 'checkpoints')
    assert restored is not None, path
    state, meter = restored
    if int(state.step) == 7:
      assert _same(state, after), path
      assert meter['tokens'] == 7, path
    else:
      assert _same(state, before), path
      assert meter['tokens'] == 3, path
      (sentence,) = said
      assert 'checkpoint of step 7 is broken' in sentence
      assert '\n' not in sentence
      assert (work / 'broken_checkpoints' / '7').is_dir()
      fell_back.append(path.name)
    shutil.rmtree(work)
  return fell_back


@pytest.mark.slow
@pytest.mark.parametrize('harm', [_truncate, _flip, pathlib.Path.unlink])
def test_damage_is_noticed_or_harmless(saved, tmp_path, harm):
  fell_back = _damage(saved, tmp_path, harm)
  # Both structure and numbers were hit.
  assert 'manifest.ocdbt' in fell_back
  assert len(fell_back) > 3


# Saves in one process and restores in another, as after a crash.
RESTORE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import jax
jax.config.update('jax_num_cpu_devices', 8)
import test_checkpoint
restored, said = test_checkpoint._restore(pathlib.Path(sys.argv[2]))
print(int(restored[0].step), len(said))
"""


@pytest.mark.parametrize('pattern', ['state/manifest.ocdbt', 'state/d/*'])
def test_a_broken_one_causes_one_sentence_only(saved, tmp_path, pattern):
  work = tmp_path / 'work'
  shutil.copytree(saved, work)
  for path in (work / 'checkpoints' / '7').glob(pattern):
    _truncate(path)
  here = str(pathlib.Path(__file__).parent)
  done = subprocess.run(
    [sys.executable, '-c', RESTORE, here, str(work / 'checkpoints')],
    capture_output=True,
    text=True,
  )
  assert (done.stdout, done.stderr) == ('3 1\n', '')


def _break(work: pathlib.Path, step: int) -> None:
  """Truncates all files of a checkpoint."""
  for path in (work / 'checkpoints' / str(step)).rglob('*'):
    if path.is_file():
      _truncate(path)


def test_several_broken_ones_are_passed_over(tmp_path):
  states = [_state(step) for step in (3, 7, 9, 12)]
  _save(tmp_path / 'checkpoints', *states)
  for step in (7, 12, 9):
    _break(tmp_path, step)
  restored, said = _restore(tmp_path / 'checkpoints')
  assert _same(restored[0], states[0])
  named = [int(sentence.split()[4]) for sentence in said]
  assert named == [12, 9, 7]
  aside = tmp_path / 'broken_checkpoints'
  assert {path.name for path in aside.iterdir()} == {'7', '9', '12'}


def test_after_a_broken_one_its_step_can_be_saved_again(saved, tmp_path):
  work = tmp_path / 'work'
  shutil.copytree(saved, work)
  _break(work, 7)
  checkpoints = Checkpoints(work / 'checkpoints', 9)
  said = []
  restored, _ = checkpoints.restore(_abstract(), said.append)
  assert int(restored.step) == 3
  checkpoints.save(_state(7), METER)
  assert checkpoints.steps() == [3, 7]
  checkpoints.close()
  restored, said = _restore(work / 'checkpoints')
  assert _same(restored[0], _state(7))
  assert not said


def test_all_broken_leaves_nothing_but_says_so(saved, tmp_path):
  for name in ('train', 'evaluate'):
    shutil.copytree(saved, tmp_path / name)
    _break(tmp_path / name, 3)
    _break(tmp_path / name, 7)
  restored, said = _restore(tmp_path / 'train' / 'checkpoints')
  assert restored is None
  assert len(said) == 2
  folder = tmp_path / 'evaluate' / 'checkpoints'
  with pytest.raises(InputError, match='holds no checkpoint'):
    restore_whole(folder, _init(), make_mesh(), said.append)
  assert len(said) == 4
