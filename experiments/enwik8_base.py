"""enwik8, Transformer-XL of 12 layers.

Command:    txl train --config=experiments/enwik8_base.py --workdir=DIR
Hardware:   4 GPUs of 11 GB (the paper's PyTorch script)
Parameters: 41,055,436
Published:  1.06 bpc (Dai et al. 2019, table 2)

All settings are those of the paper's PyTorch script.
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config


def get_config() -> ConfigDict:
  """Trains with memory 512, evaluates with 2,100."""
  config = default_config()
  config.model.update(
    vocab_size=204,
    n_layers=12,
    n_heads=8,
    d_model=512,
    d_head=64,
    d_ff=2048,
    memory_length=512,
    dropout=0.1,
    attention_dropout=0.0,
  )
  config.data.corpus = 'enwik8'
  config.optimizer.update(
    learning_rate=2.5e-4, schedule='cosine_official', clip_norm=0.25
  )
  config.train.update(steps=400_000, batch_size=22, segment_length=512)
  config.eval.update(
    batch_size=10,
    segment_length=80,
    memory_length=2100,
    attention_span=2100,
    clamp_length=820,
  )
  return config
