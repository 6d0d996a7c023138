"""The work directory: everything a run leaves behind, under fixed names."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from txl_jax.config import Config
from txl_jax.conversion import from_config_dict, to_config_dict
from txl_jax.data.vocabulary import Vocabulary, vocabulary_from_json
from txl_jax.errors import InputError
from txl_jax.parallel import processes

# Fields that may change when a run continues; '' stands for a whole section.
FREE_FIELDS = frozenset(
  [
    'train.steps',
    'train.log_every_steps',
    'train.eval_every_steps',
    'train.checkpoint_every_steps',
    'train.keep_checkpoints',
    'train.keep_every_steps',
    'train.steps_per_call',
    'train.max_skipped_steps',
    'train.stop_after_validations',
    'train.tensorboard',
    'train.wandb_project',
    'train.profile_steps',
    'mesh.',
    'model.remat',
    'model.unroll',
    'eval.',
    'sample.',
    # The corpus itself is compared.
    'data.path',
    'data.manual_dir',
    'data.cache_dir',
  ]
)


class WorkDir:
  """Paths and small files of a run.

  Attributes:
    path: the folder.
    config: the configuration, as JSON.
    vocabulary: what the token ids mean.
    run: what was found at the start: corpus, versions, devices, parameters.
    metrics: one JSON object a line.
    samples: generated text.
    report: the page.
    checkpoints: the folder of the newest checkpoints.
    best: the folder of the checkpoint with the lowest validation loss.
    tensorboard: events.
    profile: the profiler's trace.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self.config = self.path / 'config.json'
    self.vocabulary = self.path / 'vocabulary.json'
    self.run = self.path / 'run.json'
    self.metrics = self.path / 'metrics.jsonl'
    self.samples = self.path / 'samples.json'
    self.report = self.path / 'report.html'
    self.checkpoints = self.path / 'checkpoints'
    self.best = self.path / 'best'
    self.tensorboard = self.path / 'tensorboard'
    self.profile = self.path / 'profile'

  def create(self) -> None:
    """Makes the folder; an InputError if that is impossible."""
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise InputError(
        f'cannot make the work directory {self.path}: {error.strerror}'
      ) from error

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """While inside, no other run can use the folder.

    The lock ends with the process, however that ends. Other processes of the
    same run do not take it.

    Raises:
      InputError: if another run uses it.
    """
    if not processes.is_main():
      yield
      return
    with (self.path / 'lock').open('a') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise InputError(
          f'{self.path} is in use by another run; choose another --workdir'
        ) from error
      yield

  def read_config(self) -> Config:
    """The configuration that the run was made with."""
    if not self.config.is_file():
      raise InputError(
        f'{self.path} is no work directory: it has no {self.config.name}'
      )
    return from_config_dict(self._read_json(self.config))

  def read_run(self) -> dict:
    """What was found when the run began."""
    return self._read_json(self.run)

  def read_vocabulary(self) -> Vocabulary:
    """The vocabulary that the run was made with."""
    try:
      return vocabulary_from_json(self.vocabulary.read_text())
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(f'cannot read {self.vocabulary}: {error}') from error
    except InputError as error:
      raise InputError(f'{self.vocabulary}: {error}') from error

  def write_run(
    self, config: Config, vocabulary: Vocabulary, facts: dict
  ) -> None:
    """Records configuration, vocabulary and facts."""
    write_text(self.vocabulary, vocabulary.to_json() + '\n')
    write_json(self.config, json.loads(to_config_dict(config).to_json()))
    write_json(self.run, facts)

  def check_same_run(self, config: Config, corpus: dict) -> None:
    """Raises an InputError naming all that changed since the run began."""
    before = _flat(to_config_dict(self.read_config()).to_dict())
    now = _flat(to_config_dict(config).to_dict())
    changed = [name for name in now if now[name] != before[name]]
    changed = [name for name in changed if not _is_free(name)]
    if self.corpus_fingerprint() != corpus['fingerprint']:
      changed.append('data.path')
      if before['data.path'] == now['data.path']:
        before['data.path'] = f'text {self.corpus_fingerprint()}'
        now['data.path'] = f'text {corpus["fingerprint"]}'
    if changed:
      changes = ', '.join(
        f'config.{name} was {before[name]!r}, now {now[name]!r}'
        for name in dict.fromkeys(changed)
      )
      raise InputError(
        f'{self.path} holds checkpoints of another run: {changes}; restore the '
        'values or choose another --workdir'
      )

  def corpus_fingerprint(self) -> str:
    """The checksum of the corpus that the run was made with."""
    try:
      return self.read_run()['corpus']['fingerprint']
    except (KeyError, TypeError) as error:
      raise InputError(f'{self.run} has no corpus fingerprint') from error

  def _read_json(self, path: pathlib.Path) -> Any:
    try:
      return json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise InputError(f'cannot read {path}: {error}') from error


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, all of it or nothing."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file, all of it or nothing."""
  draft = path.with_name(path.name + '.part')
  draft.write_text(text)
  os.replace(draft, path)


def _flat(config: dict) -> dict:
  return {
    f'{section}.{name}': value
    for section, values in config.items()
    for name, value in values.items()
  }


def _is_free(name: str) -> bool:
  return name in FREE_FIELDS or name.split('.')[0] + '.' in FREE_FIELDS
