"""The options with which the train step is compiled."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from txl_jax.config import Config, ModelConfig, TrainConfig
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.training.compile import compiler_options

CONFIG = Config(ModelConfig(vocab_size=8))
GRAPHS = 'xla_gpu_enable_command_buffer'
SUMS = 'xla_gpu_all_reduce_combine_threshold_bytes'


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)


def _gpus(n: int, n_here: int) -> SimpleNamespace:
  """What the options look at of a mesh."""
  devices = np.array([SimpleNamespace(platform='gpu')] * n)
  return SimpleNamespace(
    devices=devices, size=n, local_devices=devices[:n_here]
  )


def test_only_gpus_have_any(tmp_path):
  assert compiler_options(CONFIG, tmp_path, mesh_lib.make_mesh()) == {}


def test_sums_are_joined_between_gpus_of_a_host(tmp_path):
  alone, pair, hosts = (
    compiler_options(CONFIG, tmp_path, _gpus(*n))
    for n in ((1, 1), (2, 2), (4, 2))
  )
  assert 'WHILE' in alone[GRAPHS].split(',')
  assert SUMS not in alone and hosts == alone
  assert pair[SUMS] > 3e8


def test_what_the_environment_says_stays(tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', f'--{SUMS}=1000 --xla_dump_to=x')
  options = compiler_options(CONFIG, tmp_path, _gpus(2, 2))
  assert SUMS not in options and GRAPHS in options


def test_deterministic_keeps_what_was_the_fastest(tmp_path):
  train = TrainConfig(deterministic=True)
  config = dataclasses.replace(CONFIG, train=train)
  folder = tmp_path / 'autotuning'
  options = compiler_options(config, folder, _gpus(1, 1))
  assert options['xla_gpu_deterministic_ops'] is True
  assert options['xla_gpu_per_fusion_autotune_cache_dir'] == str(folder)
  assert folder.is_dir() and GRAPHS in options
