"""One Billion Word, Transformer-XL of 24 layers.

Command:    txl train --config=experiments/lm1b_large.py --workdir=DIR
Hardware:   512 TPU v3 cores, 2 to 5 days (the authors' README)
Parameters: 841,296,003 (published: 0.8B)
Published:  21.8 test perplexity (Dai et al. 2019, table 4)

The settings are those of the TPU script, which gave the result; the PyTorch
script has the rate 2.5e-4 and initialises from N(0, 0.02). The 21.8 count one
certain token a sentence more than other papers do.
"""

from lm1b_base import get_config as get_base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Trains with segments and memory of 32, evaluates with memory 128."""
  config = get_base()
  config.model.update(
    n_layers=24,
    n_heads=16,
    d_model=1280,
    d_head=80,
    d_ff=8192,
    dropout=0.05,
    attention_dropout=0.05,
    init_std=0.005,
  )
  config.optimizer.update(
    learning_rate=1e-4, final_learning_rate=1e-6, warmup_steps=30_000
  )
  config.optimizer.schedule = 'cosine'
  config.train.update(steps=1_200_000, batch_size=512)
  config.eval.batch_size = 8
  return config
