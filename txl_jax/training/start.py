"""How a run begins: anew, from other parameters, or where it stopped."""

import dataclasses
import os
import pathlib
import platform
from importlib.metadata import version
from typing import Any

import jax

from txl_jax.errors import InputError
from txl_jax.interop.pretrained import load_pretrained
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel import partition
from txl_jax.training.averaging import init_average
from txl_jax.training.checkpoint import Checkpoints, abstract_state
from txl_jax.training.meter import Meter
from txl_jax.training.monitor import Monitor
from txl_jax.training.run import load_run
from txl_jax.training.setup import Setup
from txl_jax.training.state import TrainState


@dataclasses.dataclass
class Notes:
  """What the host knows of a run beside its state.

  Attributes:
    meter: sums since the last line of metrics.
    monitor: what validation has found.
    late: the sums of a line that is to be recorded.
    rate_scale: what a plateau has done to the learning rate.
  """

  meter: Meter
  monitor: Monitor
  late: Meter | None = None
  rate_scale: float = 1.0

  def to_json(self) -> dict:
    """For the checkpoint; waits for the device."""
    return {'sums': self.meter.sums(), 'monitor': self.monitor.to_json()}


def start(setup: Setup, checkpoints: Checkpoints) -> tuple[TrainState, Notes]:
  """The newest checkpoint, or the beginning of a new run."""
  corpus = setup.corpus.summary()
  had_some = bool(checkpoints.steps())
  if had_some:
    setup.work.check_same_run(setup.config, corpus)
  abstract = abstract_state(setup.init, setup.mesh)
  restored = checkpoints.restore(abstract, setup.say)
  if had_some and not restored:
    setup.say('No whole checkpoint is left: starting from the beginning.')
  facts = _facts(setup, abstract.params, corpus)
  if setup.is_main:
    setup.work.write_run(setup.config, setup.corpus.vocabulary, facts)
  _introduce(setup, facts, abstract.params)
  most = setup.config.train.max_skipped_steps
  if not restored:
    setup.metrics.drop_after(-1)
    return _begin(setup, abstract), Notes(Meter(most_skipped=most), Monitor())
  state, host = restored
  _check_calls(setup, int(state.step))
  setup.metrics.drop_after(int(state.step))
  setup.say(f'Going on from step {int(state.step):,}.')
  meter = Meter(host['sums'], most_skipped=most)
  notes = Notes(meter, Monitor.from_json(host['monitor']))
  if state.plateau is not None:
    notes.rate_scale = float(state.plateau.scale)
  return state, notes


def _check_calls(setup: Setup, step: int) -> None:
  per_call = setup.config.train.steps_per_call
  if step % per_call:
    raise InputError(
      f'config.train.steps_per_call is {per_call}, expected a divisor of the '
      f'step {step:,} that the run goes on from'
    )


def _begin(setup: Setup, abstract: TrainState) -> TrainState:
  """A fresh state, with the parameters of another run if one is named."""
  shardings = mesh_lib.state_shardings(setup.mesh, abstract)
  state = jax.jit(setup.init, out_shardings=shardings)()
  source = setup.config.train.init_from
  if not source:
    return state
  params = read_params(source)
  check_params(params, abstract.params, source)
  setup.say(f'Parameters from {source}')
  params = jax.tree.map(jax.device_put, params, shardings.params)
  average = (
    None
    if state.average is None
    else init_average(setup.config.optimizer, params)
  )
  return state.replace(params=params, average=average)


def read_params(source: str) -> dict:
  """Parameters of a work directory, or of what `save_pretrained` wrote."""
  if (pathlib.Path(source) / 'checkpoints').is_dir():
    return load_run(source, lambda line: None).params
  return load_pretrained(source)[1]


def check_params(params: dict, expected: dict, source: str | os.PathLike):
  """Raises an InputError naming the first parameters that do not fit."""
  found, wanted = _shapes(params), _shapes(expected)
  wrong = [
    f'{name} is {found.get(name, "missing")}, expected '
    f'{wanted.get(name, "nothing")}'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise InputError(
      f'config.train.init_from: the parameters of {source} do not fit the '
      f'model: {"; ".join(wrong[:3])}{more}'
    )


def _shapes(params: dict) -> dict[str, list[int]]:
  return {
    partition.path_name(path): list(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _facts(setup: Setup, params: Any, corpus: dict) -> dict:
  devices = setup.mesh.devices.flat
  return {
    'txl_jax': version('txl_jax'),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'devices': f'{setup.mesh.size} x {devices[0].device_kind}',
    'mesh': dict(setup.mesh.shape),
    'processes': jax.process_count(),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'corpus': corpus,
    'measure': setup.corpus.vocabulary.measure,
  }


def _introduce(setup: Setup, facts: dict, params: Any) -> None:
  model, corpus = setup.config.model, facts['corpus']
  sizes = ', '.join(
    f'{len(ids):,} {split}' for split, ids in setup.corpus.tokens.items()
  )
  setup.say(f'Text     {corpus["name"]}: tokens {sizes}')
  setup.say(
    f'Model    {model.n_layers} layers of width {model.d_model}, memory '
    f'{model.memory_length}, {facts["parameters"]:,} parameters'
  )
  axes = ', '.join(f'{n} {name}' for name, n in facts['mesh'].items() if n > 1)
  setup.say(
    f'Devices  {facts["devices"]}{f" ({axes})" if axes else ""}, jax '
    f'{facts["jax"]}'
  )
  for line in partition.unsharded(setup.mesh, params):
    setup.say(line)
