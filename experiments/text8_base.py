"""text8, Transformer-XL of 12 layers.

Command:    txl train --config=experiments/text8_base.py --workdir=DIR
Hardware:   4 GPUs of 11 GB (the paper's PyTorch script)
Parameters: 40,964,635
Published:  none; the paper's code has the script

All settings are those of the script, which are the ones for enwik8.
"""

from enwik8_base import get_config as get_enwik8
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The 12-layer enwik8 model on letters and spaces."""
  config = get_enwik8()
  config.model.vocab_size = 27
  config.data.corpus = 'text8'
  return config
