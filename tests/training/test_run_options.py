"""What a run can be asked for beside training."""

import dataclasses
import errno
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from txl_jax import config as parts
from txl_jax.config import Config
from txl_jax.errors import InputError, TrainingError
from txl_jax.training import checkpoint
from txl_jax.training.finish import finish
from txl_jax.training.loop import train
from txl_jax.training.monitor import Monitor
from txl_jax.training.run import load_run
from txl_jax.training.setup import Setup, set_up
from txl_jax.training.start import check_params

STEPS = 6


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
  words = [b'memory ', b'segment ', b'value ', b'key\n']
  chosen = np.random.default_rng(0).integers(0, len(words), 4000)
  path.write_bytes(b''.join(words[i] for i in chosen))
  return path


@pytest.fixture
def optimized():
  """Programs as users compile them; else the same sums differ by rounding."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def _config(corpus: pathlib.Path, **train) -> Config:
  sizes = dict(vocab_size=257, n_layers=1, n_heads=2, d_model=16, d_head=8)
  every = dict(log_every_steps=2, eval_every_steps=2, checkpoint_every_steps=2)
  options = dict(steps=STEPS, batch_size=8, segment_length=8) | every | train
  return Config(
    parts.ModelConfig(**sizes, d_ff=16, memory_length=8, dropout=0.0),
    parts.DataConfig(str(corpus)),
    parts.OptimizerConfig(learning_rate=1e-2),
    parts.TrainConfig(**{'tensorboard': False, **options}),
    parts.EvalConfig(batch_size=8, segment_length=64, memory_length=8),
    parts.SampleConfig(length=4),
  )


def _set_up(config: Config, work: pathlib.Path) -> tuple[Setup, list[str]]:
  said: list[str] = []
  return set_up(config, work, said.append), said


def _lines(work: pathlib.Path, split: str) -> list[dict]:
  lines = map(json.loads, (work / 'metrics.jsonl').read_text().splitlines())
  return [line for line in lines if line['split'] == split]


class Poisoned:
  """A stream some of whose steps hold an id that is no token."""

  def __init__(self, stream, steps: range):
    self._stream, self._steps = stream, steps

  def __getitem__(self, step: int):
    batch = self._stream[step]
    if step in self._steps:
      batch.tokens_SBT[0, 1, 1] = 300
    return batch


def _poison(setup: Setup, steps: range) -> Setup:
  stream = Poisoned(setup.stream, steps)
  return dataclasses.replace(setup, stream=stream)


def test_a_broken_step_is_skipped_counted_and_can_be_replayed(corpus, tmp_path):
  every = dict(log_every_steps=6, checkpoint_every_steps=3)
  setup, said = _set_up(_config(corpus, **every), tmp_path)
  state = train(_poison(setup, range(2, 3)))
  assert int(state.step) == STEPS
  lines = setup.metrics.read()
  [line] = _lines(tmp_path, 'skipped')
  assert line['step'] == 3
  key = jax.random.fold_in(state.key, 2)
  assert line['key'] == jax.random.key_data(key).tolist()
  assert 'softmax' in line['groups']
  assert any('Skipped step 3' in text for text in said)
  assert [x['skipped'] for x in _lines(tmp_path, 'train')] == [1]
  # Killed between the skipped step and the line that tells of it.
  shutil.rmtree(tmp_path / 'checkpoints' / '6')
  train(_poison(setup, range(2, 3)))
  for line in (*lines, *(again := setup.metrics.read())):
    line.pop('tokens_per_second', None)
  assert again == lines


def test_broken_for_good_it_stops(corpus, tmp_path):
  setup, _ = _set_up(_config(corpus, max_skipped_steps=3), tmp_path)
  with pytest.raises(TrainingError, match='step 5 is the last of 3 .*softmax'):
    train(_poison(setup, range(2, 99)))
  assert [line['step'] for line in _lines(tmp_path, 'skipped')] == [3, 4, 5]


def test_what_no_parameter_matches_leaves_no_folder(corpus, tmp_path):
  config = _config(corpus)
  optimizer = dataclasses.replace(config.optimizer, frozen=('embeding',))
  config = dataclasses.replace(config, optimizer=optimizer)
  setup, _ = _set_up(config, tmp_path / 'run')
  with pytest.raises(InputError, match="frozen: the pattern 'embeding'"):
    train(setup)
  assert not (tmp_path / 'run').exists()


def test_a_second_run_in_the_folder_is_refused(corpus, tmp_path):
  setup, _ = _set_up(_config(corpus), tmp_path)
  setup.work.create()
  with setup.work.locked(), pytest.raises(InputError, match='is in use by'):
    train(setup)


def test_the_best_checkpoint_is_tested_and_loaded(corpus, tmp_path):
  config = _config(corpus)
  setup, _ = _set_up(config, tmp_path)
  results = iter([3.0, 1.0, 2.0])

  class Judge(Setup):
    def evaluate(self, params, split):
      result = super().evaluate(params, split)
      if split == 'test':
        return result
      nll = next(results) * result.tokens
      return dataclasses.replace(result, nll_sum=nll)

  setup = Judge(
    **{f.name: getattr(setup, f.name) for f in dataclasses.fields(setup)}
  )
  state = train(setup)
  assert finish(setup, state)
  run = load_run(tmp_path, pytest.fail)
  assert run.step == 4
  assert load_run(tmp_path, pytest.fail, checkpoint='last').step == STEPS
  [line] = _lines(tmp_path, 'test')
  assert (line['step'], line['of_step']) == (STEPS, 4)
  loss = run.evaluate('test').nll
  assert line['loss'] == pytest.approx(loss, rel=1e-6)


def test_a_run_stops_when_validation_gets_no_better(corpus, tmp_path):
  config = _config(corpus, steps=40, stop_after_validations=2)
  still = dataclasses.replace(config.optimizer, learning_rate=1e-30)
  config = dataclasses.replace(config, optimizer=still)
  setup, said = _set_up(config, tmp_path)
  state = train(setup)
  assert int(state.step) == 6
  assert any('stopped at step 6' in line for line in said)
  # Nor does it go on when it is started again.
  assert int(train(_set_up(config, tmp_path)[0]).step) == 6


def test_the_monitor_goes_through_json():
  monitor = Monitor()
  assert Monitor.from_json(monitor.to_json()) == monitor
  assert [monitor.after(i, loss) for i, loss in enumerate([3, 2, 2.5])] == [
    True,
    True,
    False,
  ]
  assert monitor == Monitor(2, 1, 1)
  again = Monitor.from_json(json.loads(json.dumps(monitor.to_json())))
  assert again == monitor
  assert again.has_waited(1)
  assert not again.has_waited(None)


@pytest.mark.slow
def test_some_checkpoints_are_kept(corpus, tmp_path):
  config = _config(corpus, keep_checkpoints=1, keep_every_steps=4)
  train(_set_up(config, tmp_path)[0])
  kept = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert kept == {'4', '6'}
  assert len(list((tmp_path / 'best').iterdir())) == 1


@pytest.mark.slow
def test_calls_begin_where_a_run_goes_on(corpus, tmp_path):
  every = dict(steps=3, eval_every_steps=3, checkpoint_every_steps=3)
  train(_set_up(_config(corpus, **every), tmp_path)[0])
  later = dict(steps=6, steps_per_call=2, eval_every_steps=6)
  config = _config(corpus, **later, checkpoint_every_steps=6)
  with pytest.raises(InputError, match='steps_per_call is 2, .* of the step 3'):
    train(_set_up(config, tmp_path)[0])


@pytest.mark.slow
def test_several_steps_a_call_make_the_same_run(corpus, tmp_path, optimized):
  one, _ = _set_up(_config(corpus), tmp_path / 'one')
  two, _ = _set_up(_config(corpus, steps_per_call=2), tmp_path / 'two')
  first, second = train(one), train(two)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  with pytest.raises(InputError, match='train.steps must be a multiple of'):
    _config(corpus, steps_per_call=4)


@pytest.mark.slow
def test_another_runs_parameters_are_a_start(corpus, tmp_path):
  first = train(_set_up(_config(corpus), tmp_path / 'first')[0])
  config = _config(corpus, init_from=str(tmp_path / 'first'), steps=2)
  still = dataclasses.replace(config.optimizer, learning_rate=1e-30)
  config = dataclasses.replace(config, optimizer=still)
  second = train(_set_up(config, tmp_path / 'second')[0])
  run = load_run(tmp_path / 'first', pytest.fail)
  for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(second.params)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert int(first.step) == STEPS
  wrong = {**first.params, 'softmax': {'bias': np.zeros(3)}}
  message = r'softmax/bias is \[3\], expected \[257\]'
  with pytest.raises(InputError, match=message):
    check_params(wrong, first.params, 'there')


@pytest.mark.slow
def test_a_trace_and_events_are_written(corpus, tmp_path):
  config = _config(corpus, steps=16, profile_steps=2, tensorboard=True)
  train(_set_up(config, tmp_path)[0])
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  [events] = (tmp_path / 'tensorboard').iterdir()
  raw = events.read_bytes()
  assert b'train/loss' in raw
  assert b'train/gradient_norms/softmax' in raw
  assert b'validation/bpc' in raw


def test_the_length_of_a_run_in_tokens(corpus, tmp_path):
  config = _config(corpus, tokens=5 * 64 - 3)
  assert _set_up(config, tmp_path)[0].config.train.steps == 5


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(corpus, tmp_path, monkeypatch):
  write = checkpoint.write_checksums

  def full(folder: pathlib.Path) -> None:
    if folder.parts[-2:] == ('checkpoints', '4'):
      raise OSError(errno.ENOSPC, 'No space left on device')
    write(folder)

  monkeypatch.setattr(checkpoint, 'write_checksums', full)
  message = 'checkpoint of step 4 cannot be .*No space left.* step 2 is intact'
  with pytest.raises(TrainingError, match=message):
    train(_set_up(_config(corpus), tmp_path)[0])
  monkeypatch.undo()
  setup, said = _set_up(_config(corpus), tmp_path)
  assert int(train(setup).step) == STEPS
  assert 'Going on from step 2.' in said
  assert any('checkpoint of step 4 is broken' in line for line in said)


@pytest.mark.slow
def test_damage_to_the_records_of_orbax(corpus, tmp_path):
  train(_set_up(_config(corpus), tmp_path)[0])
  record = tmp_path / 'checkpoints' / '6' / '_CHECKPOINT_METADATA'
  assert record.exists()
  for text in ('[1]', '{"a": 1}', 'null'):
    record.write_text(text)
    setup, said = _set_up(_config(corpus), tmp_path)
    assert int(train(setup).step) == STEPS
    assert any('checkpoint of step 6 is broken' in line for line in said)
    assert 'Going on from step 4.' in said
