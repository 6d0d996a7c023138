"""Eight virtual devices, fast compilation, and the optional folders."""

import importlib.metadata
import os
import pathlib

import jax
import pytest

# More than half of the time to compile goes into XLA's newer way to emit
# fusions; from this version on it has no other.
if importlib.metadata.version('jaxlib') < '0.11':
  emitters = '--xla_cpu_use_fusion_emitters=false'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {emitters}'
jax.config.update('jax_num_cpu_devices', 8)
# Tests compile far more than they compute.
jax.config.update('jax_disable_most_optimizations', True)


def _folder(variable: str) -> pathlib.Path:
  value = os.environ.get(variable)
  if not value or not pathlib.Path(value).is_dir():
    pytest.skip(f'{variable} names no folder')
  return pathlib.Path(value)


@pytest.fixture(scope='session')
def golden_dir() -> pathlib.Path:
  """Results of the paper's PyTorch code."""
  return _folder('TXL_GOLDEN_DIR')


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """Real text."""
  return _folder('TXL_DATA_DIR')
