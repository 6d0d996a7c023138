"""enwik8, Transformer-XL of 24 layers.

Command:    txl train --config=experiments/enwik8_large.py --workdir=DIR
Variants:   :784 (the paper's table), :680 (the authors' talk)
Hardware:   32 TPU v3 cores, 2 to 5 days (the authors' README)
Parameters: 277,231,820
Published:  0.99 bpc (Dai et al. 2019, table 2)

The settings are those of the paper's scripts, which train with segments and
memory of 768 tokens.
"""

from enwik8_base import get_config as get_base
from ml_collections import ConfigDict

VARIANTS = {'784': '0.99 bpc', '680': '0.99 bpc'}


def get_config(length: str = '768') -> ConfigDict:
  """Trains with segments and memory of `length`, evaluates with 3,800."""
  config = get_base()
  config.model.update(
    n_layers=24,
    n_heads=8,
    d_model=1024,
    d_head=128,
    d_ff=3072,
    memory_length=int(length),
    dropout=0.15,
    attention_dropout=0.15,
  )
  config.optimizer.warmup_steps = 4000
  config.train.update(batch_size=64, segment_length=int(length))
  config.eval.update(
    segment_length=128,
    memory_length=3800,
    attention_span=3800,
    clamp_length=1000,
  )
  return config
