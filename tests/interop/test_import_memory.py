"""A large checkpoint is never in memory more than a few times."""

import json
import subprocess
import sys

import numpy as np
import pytest

import txl_jax
from txl_jax.interop import state_dict
from txl_jax.interop.options import options_of
from txl_jax.interop.torch_writing import save_torch

READ = """import resource, sys
from txl_jax.interop.checkpoints import read_checkpoint
read_checkpoint(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""


@pytest.mark.full
def test_importing_the_large_model_of_wikitext_103(tmp_path):
  config = txl_jax.ModelConfig(
    vocab_size=267735,
    n_layers=18,
    n_heads=16,
    d_model=1024,
    d_ff=4096,
    memory_length=1600,
    cutoffs=(20000, 40000, 200000),
    div_val=4,
    tie_projections=(False, True, True, True),
  )
  arrays = {}
  for entry in state_dict.entries(config):
    arrays[entry.name] = np.zeros(entry.shape, np.float32)
    if entry.same_as:
      arrays[entry.name] = arrays[entry.same_as]
  save_torch(tmp_path / 'model.pt', arrays)
  (tmp_path / 'config.json').write_text(json.dumps(options_of(config)))
  size = (tmp_path / 'model.pt').stat().st_size
  assert size == pytest.approx(4 * 285_170_506, rel=0.001)
  command = [sys.executable, '-c', READ, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  unit = 1 if sys.platform == 'darwin' else 1024
  assert int(done.stdout) * unit < 3 * size
