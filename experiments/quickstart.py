"""A small byte-level Transformer-XL on Python's own source code.

Command:   make quickstart
Hardware:  2 CPU cores
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config


def get_config() -> ConfigDict:
  """Four layers of width 128."""
  config = default_config()
  config.model.update(
    n_layers=4,
    n_heads=4,
    d_model=128,
    d_head=32,
    d_ff=512,
    memory_length=128,
    dropout=0.0,
    unroll=4,
  )
  config.optimizer.update(
    learning_rate=2e-3,
    final_learning_rate=1e-4,
    warmup_steps=100,
    clip_norm=1.0,
  )
  config.train.update(
    steps=1500,
    batch_size=16,
    segment_length=128,
    log_every_steps=50,
    eval_every_steps=500,
    checkpoint_every_steps=500,
  )
  config.eval.update(batch_size=16, segment_length=128, memory_length=128)
  config.sample.update(prompts=('import ', 'class '), length=600)
  return config
