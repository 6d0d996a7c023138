"""A run continues as if it had not stopped, or says why it cannot."""

import dataclasses
import json
import pathlib
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax import config as parts
from txl_jax.config import Config
from txl_jax.errors import InputError, TrainingError
from txl_jax.training.checkpoint import Checkpoints, abstract_state
from txl_jax.training.loop import train
from txl_jax.training.setup import set_up
from txl_jax.training.state import TrainState

STEPS = 12
# Checkpoints stand in the middle of a logging interval.
EVERY = dict(log_every_steps=4, eval_every_steps=6, checkpoint_every_steps=5)


def _text(seed: int, n_bytes: int = 20_000) -> bytes:
  words = 'the memory of a segment goes in and comes out as value'.split()
  choose = random.Random(seed)
  text = ' '.join(choose.choice(words) for _ in range(n_bytes // 3))
  return text.encode()[:n_bytes]


def _config(corpus: pathlib.Path, **model) -> Config:
  fields = dict(
    **dict(vocab_size=257, n_layers=2, n_heads=2, d_model=16, d_head=8),
    **dict(d_ff=32, memory_length=8, dropout=0.2, attention_dropout=0.2),
  )
  return Config(
    parts.ModelConfig(**fields | model),
    parts.DataConfig(str(corpus)),
    parts.OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    parts.TrainConfig(STEPS, 8, 8, 2, **EVERY, keep_checkpoints=9),
    parts.EvalConfig(batch_size=8, segment_length=32, memory_length=8),
  )


def _change(config: Config, section: str, **fields) -> Config:
  part = dataclasses.replace(getattr(config, section), **fields)
  return dataclasses.replace(config, **{section: part})


@pytest.fixture(scope='module', autouse=True)
def _compiled_once(tmp_path_factory):
  """Each run compiles its own step; equal ones are compiled once."""
  before = jax.config.jax_compilation_cache_dir
  folder = tmp_path_factory.mktemp('compiled')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  yield
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> pathlib.Path:
  """A small text file."""
  path = tmp_path_factory.mktemp('corpus') / 'text.txt'
  path.write_bytes(_text(0))
  return path


class Stop:
  """Collects what is said, and interrupts at the first line with a text."""

  def __init__(self, text: str | None = None):
    self.text, self.said = text, []

  def __call__(self, line: str) -> None:
    self.said.append(line)
    if self.text and self.text in line:
      raise KeyboardInterrupt


def _train(config: Config, work: pathlib.Path, say=None) -> TrainState:
  return train(set_up(config, work, say or Stop()))


def _interrupt(config: Config, work: pathlib.Path, at: str) -> None:
  with pytest.raises(KeyboardInterrupt):
    _train(config, work, Stop(at))


def _leaves(state: TrainState) -> list[tuple]:
  """Every leaf with its path, bit for bit."""
  result = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    result.append((name, array.dtype, array.shape, array.tobytes()))
  return result


def _lines(work: pathlib.Path) -> list[dict]:
  """The metrics, without the one that tells the time."""
  lines = (work / 'metrics.jsonl').read_text().splitlines()
  parsed = [json.loads(line) for line in lines]
  for line in parsed:
    line.pop('tokens_per_second', None)
  return parsed


def _saved_steps(work: pathlib.Path) -> set[int]:
  return {int(path.name) for path in (work / 'checkpoints').iterdir()}


@pytest.fixture(scope='module')
def whole(corpus, tmp_path_factory) -> tuple[TrainState, pathlib.Path]:
  """The final state of an uninterrupted run, and its work directory."""
  work = tmp_path_factory.mktemp('whole') / 'run'
  return _train(_config(corpus), work), work


def test_what_a_run_leaves_behind(whole, corpus):
  state, work = whole
  places = [(line['step'], line['split']) for line in _lines(work)]
  assert [step for step, split in places if split == 'train'] == [4, 8, 12]
  assert [step for step, split in places if split == 'validation'] == [6, 12]
  assert _saved_steps(work) == {5, 10, 12}
  run = json.loads((work / 'run.json').read_text())
  n_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert run['parameters'] == n_params
  assert run['devices'].startswith('8 x ')
  assert not list(work.glob('*.part'))
  first, *_, last = (x for x in _lines(work) if x['split'] == 'train')
  assert last['loss'] < first['loss']
  assert last['tokens'] == STEPS * 8 * 8 * 2


def test_killed_and_resumed_equals_uninterrupted(whole, corpus, tmp_path):
  state, work = whole
  config = _config(corpus)
  # Before the first checkpoint, and in two places after it.
  _interrupt(config, tmp_path, at='step  4/12')
  assert not _saved_steps(tmp_path)
  _interrupt(config, tmp_path, at='step  8/12')
  assert _saved_steps(tmp_path) == {5}
  assert _lines(tmp_path)[-1]['step'] == 8
  _interrupt(config, tmp_path, at='validation at step 6')
  assert _lines(tmp_path)[-1]['step'] == 6
  say = Stop()
  resumed = _train(config, tmp_path, say)
  assert 'Going on from step 5.' in say.said
  assert _leaves(resumed) == _leaves(state)
  assert _lines(tmp_path) == _lines(work)


@pytest.fixture
def copy(whole, tmp_path) -> pathlib.Path:
  """A copy of the work directory, to be changed."""
  return pathlib.Path(shutil.copytree(whole[1], tmp_path / 'copy'))


def _drop(work: pathlib.Path, *steps: int) -> None:
  for step in steps:
    shutil.rmtree(work / 'checkpoints' / str(step))


def test_a_finished_run_is_left_as_it_is(whole, corpus, copy, tmp_path):
  before = _snapshot(copy)
  state = _train(_config(corpus), copy)
  assert _leaves(state) == _leaves(whole[0])
  assert _snapshot(copy) == before
  # The same text in another place is the same text.
  moved = tmp_path / 'moved.txt'
  moved.write_bytes(corpus.read_bytes())
  assert _leaves(_train(_config(moved), copy)) == _leaves(whole[0])


def test_intervals_may_change_when_a_run_goes_on(whole, corpus, copy):
  _drop(copy, 10, 12)
  changes = dict(log_every_steps=1, eval_every_steps=9, keep_checkpoints=2)
  config = _change(
    _config(corpus), 'train', checkpoint_every_steps=8, **changes
  )
  state = _train(config, copy)
  assert _leaves(state) == _leaves(whole[0])
  places = [(line['step'], line['split']) for line in _lines(copy)]
  assert len(set(places)) == len(places)
  logged = {step for step, split in places if split == 'train'}
  assert logged == {4, *range(6, 13)}
  assert {step for step, split in places if split == 'validation'} == {9, 12}
  assert _saved_steps(copy) == {8, 12}


def test_more_steps_may_be_asked_for(corpus, copy):
  say = Stop()
  config = _change(_config(corpus), 'train', steps=STEPS + 3)
  state = _train(config, copy, say)
  assert int(state.step) == STEPS + 3
  assert f'Going on from step {STEPS}.' in say.said
  places = [(line['step'], line['split']) for line in _lines(copy)]
  assert len(set(places)) == len(places)
  assert (STEPS + 3, 'train') in places


def _snapshot(work: pathlib.Path) -> dict[str, bytes]:
  return {
    path.relative_to(work).as_posix(): path.read_bytes()
    for path in work.rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize(
  ('section', 'name', 'old', 'new'),
  [
    ('model', 'd_ff', 32, 48),
    ('model', 'attention_span', None, 4),
    ('train', 'batch_size', 8, 16),
    ('train', 'segment_length', 8, 16),
    ('train', 'segments_per_step', 2, 1),
    ('train', 'seed', 0, 1),
    ('optimizer', 'schedule', 'cosine', 'cosine_official'),
    ('data', 'validation_fraction', 0.05, 0.1),
  ],
)
def test_another_run_is_refused(corpus, copy, section, name, old, new):
  before = _snapshot(copy)
  config = _change(_config(corpus), section, **{name: new})
  with pytest.raises(InputError) as caught:
    _train(config, copy)
  message = f'config.{section}.{name} was {old!r}, now {new!r}'
  assert message in str(caught.value)
  assert str(copy) in str(caught.value)
  assert _snapshot(copy) == before


def test_another_text_is_refused(corpus, copy, tmp_path):
  before, raw = _snapshot(copy), corpus.read_bytes()
  other = tmp_path / 'other.txt'
  other.write_bytes(_text(1))
  named = f"config.data.path was '{corpus}', now '{other}'"
  with pytest.raises(InputError, match=re.escape(named)):
    _train(_config(other), copy)
  corpus.write_bytes(raw[:-1] + b'~')
  try:
    with pytest.raises(
      InputError, match='config.data.path was .*text [0-9a-f]'
    ):
      _train(_config(corpus), copy)
  finally:
    corpus.write_bytes(raw)
  assert _snapshot(copy) == before


def test_without_memory_a_run_trains_saves_and_resumes(corpus, tmp_path):
  config = _config(corpus, memory_length=0)
  work = tmp_path / 'run'
  state = _train(config, work)
  assert state.memory.hidden_NBMD.shape == (2, 8, 0, 16)
  lines = _lines(work)
  _drop(work, 10, 12)
  say = Stop()
  resumed = _train(config, work, say)
  assert 'Going on from step 5.' in say.said
  assert _leaves(resumed) == _leaves(state)
  assert _lines(work) == lines


def _exploding(corpus: pathlib.Path, eval_every_steps: int) -> Config:
  config = _config(corpus)
  config = _change(config, 'optimizer', learning_rate=1e30, warmup_steps=0)
  every = dict(log_every_steps=1, checkpoint_every_steps=1, max_skipped_steps=1)
  return _change(config, 'train', eval_every_steps=eval_every_steps, **every)


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
  config = _exploding(corpus, eval_every_steps=100)
  with pytest.raises(TrainingError, match='^step 2 is the last of 1 '):
    _train(config, tmp_path)
  setup = set_up(config, tmp_path, pytest.fail)
  checkpoints = Checkpoints(setup.work.checkpoints)
  assert checkpoints.steps() == [1]
  abstract = abstract_state(setup.init, setup.mesh)
  state, _ = checkpoints.restore(abstract, pytest.fail)
  checkpoints.close()
  assert int(state.step) == 1
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  lines = [(line['split'], line['step']) for line in _lines(tmp_path)]
  assert lines == [('train', 1), ('skipped', 2)]


def test_so_does_one_that_validation_finds(corpus, tmp_path):
  with pytest.raises(TrainingError, match='step 1'):
    _train(_exploding(corpus, eval_every_steps=1), tmp_path)
