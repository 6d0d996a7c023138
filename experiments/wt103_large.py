"""WikiText-103, Transformer-XL of 18 layers: the paper's large model.

Command:    txl train --config=experiments/wt103_large.py --workdir=DIR
Hardware:   64 TPU v3 cores, 2 to 5 days (the authors' README)
Parameters: 285,170,506 (the paper says 257M and does not say how it counts)
Published:  18.3 test perplexity (Dai et al. 2019, table 1)

All settings are those of the paper's PyTorch script but for the initialisation,
N(0, 0.005), which is that of the TPU script that gave the result.
"""

from ml_collections import ConfigDict
from wt103_base import get_config as get_base


def get_config() -> ConfigDict:
  """Trains with segments and memory of 384, evaluates with 128 and 1,600."""
  config = get_base()
  config.model.update(
    div_val=4,
    tie_projections=(False, True, True, True),
    n_layers=18,
    n_heads=16,
    d_model=1024,
    d_head=64,
    d_ff=4096,
    memory_length=384,
    dropout=0.2,
    attention_dropout=0.2,
    init_std=0.005,
  )
  config.optimizer.warmup_steps = 16_000
  config.train.update(steps=4_000_000, batch_size=128, segment_length=384)
  config.eval.update(
    segment_length=128,
    memory_length=1600,
    attention_span=1600,
    clamp_length=1000,
  )
  return config
