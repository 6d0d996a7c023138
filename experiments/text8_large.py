"""text8, Transformer-XL of 24 layers.

Command:    txl train --config=experiments/text8_large.py --workdir=DIR
Hardware:   32 TPU v3 cores, 2 to 5 days (the authors' README)
Parameters: 277,050,395
Published:  1.08 bpc (Dai et al. 2019, table 3)

The settings are those of the paper's TPU script, which are the ones for enwik8
(the PyTorch script forgets the warm-up).
"""

from enwik8_large import get_config as get_enwik8
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The 24-layer enwik8 model on letters and spaces."""
  config = get_enwik8()
  config.model.vocab_size = 27
  config.data.corpus = 'text8'
  return config
