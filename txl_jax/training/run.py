"""A trained run, read back from its work directory."""

import dataclasses
import os
from collections.abc import Callable
from typing import Literal

import numpy as np

from txl_jax.config import Config
from txl_jax.conversion import from_config_dict, to_config_dict
from txl_jax.data.corpora import load_corpus
from txl_jax.data.vocabulary import Vocabulary
from txl_jax.errors import InputError
from txl_jax.evaluation.perplexity import Result, summed, token_losses
from txl_jax.overrides import apply_overrides
from txl_jax.parallel.mesh import make_mesh
from txl_jax.training.averaging import averaged
from txl_jax.training.checkpoint import has_checkpoints, restore_whole
from txl_jax.training.optimizer import make_optimizer
from txl_jax.training.state import init_state
from txl_jax.training.workdir import WorkDir


@dataclasses.dataclass(frozen=True)
class Run:
  """A model and what it was trained on.

  Attributes:
    work: the work directory.
    config: the experiment.
    params: of a checkpoint; averages, if the run keeps them.
    step: of that checkpoint.
    vocabulary: of the model.
    say: receives lines of progress.
  """

  work: WorkDir
  config: Config
  params: dict
  step: int
  vocabulary: Vocabulary
  say: Callable[[str], None]

  def tokens(self, split: str) -> np.ndarray:
    """The ids of a split of the corpus that the run was trained on.

    Raises:
      InputError: if that is not the same text any more.
    """
    corpus = load_corpus(self.config.data, self.say)
    fingerprint = corpus.fingerprint()
    if fingerprint != self.work.corpus_fingerprint():
      raise InputError(
        f'{corpus.name} is not the text that the run was trained on: its '
        f'fingerprint was {self.work.corpus_fingerprint()}, now {fingerprint}'
      )
    return corpus.tokens[split]

  def evaluate(self, split: str) -> Result:
    """Scores a split of the corpus that the run was trained on."""
    tokens = self.tokens(split)
    return summed(self.token_losses(tokens), tokens, self.vocabulary)

  def token_losses(self, tokens: np.ndarray) -> np.ndarray:
    """The loss of each token of a text but the first, in order."""
    return token_losses(
      self.config.model,
      self.params,
      tokens,
      self.vocabulary,
      self.config.eval,
      make_mesh(),
    )


def load_run(
  workdir: str | os.PathLike,
  say: Callable[[str], None],
  overrides: list[str] | None = None,
  checkpoint: Literal['best', 'last'] = 'best',
) -> Run:
  """Reads a run.

  Args:
    workdir: its folder.
    say: receives a sentence about each broken checkpoint.
    overrides: `--config.eval.FIELD=VALUE` arguments.
    checkpoint: the one with the lowest validation loss, if there has been a
      validation, or the newest one.

  Raises:
    InputError: if the folder holds no run, or another section is overridden.
  """
  work = WorkDir(workdir)
  config = work.read_config()
  for argument in overrides or ():
    if not argument.startswith('--config.eval.'):
      raise InputError(
        f'{argument!r}: of a trained run only --config.eval.FIELD=VALUE can be '
        'changed'
      )
  if overrides:
    values = apply_overrides(to_config_dict(config), overrides)
    config = from_config_dict(values)

  def init():
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    return init_state(config, optimizer)

  folder = work.checkpoints
  if checkpoint == 'best' and has_checkpoints(work.best):
    folder = work.best
  state = restore_whole(folder, init, make_mesh(), say)
  params = averaged(config.optimizer, state.average, state.params)
  vocabulary = work.read_vocabulary()
  return Run(work, config, params, int(state.step), vocabulary, say)
