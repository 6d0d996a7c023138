"""A small byte-level Transformer-XL on the source code of Python's library.

Command:    make quickstart
Hardware:   2 CPU cores, about four minutes
Parameters: 889,985
Published:  none; reaches 1.96 bits per character on the test files
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config


def get_config() -> ConfigDict:
  """Sizes and rates that make the most of a few minutes of CPU time."""
  config = default_config()
  config.model.update(
    n_layers=4,
    n_heads=4,
    d_model=128,
    d_head=32,
    d_ff=512,
    memory_length=64,
    dropout=0.0,
    # The paper's 0.02 is for widths of 410 and more.
    init_std=0.05,
    unroll=4,
  )
  config.optimizer.update(
    learning_rate=3e-3,
    final_learning_rate=1e-4,
    warmup_steps=100,
    clip_norm=1.0,
  )
  config.train.update(
    steps=1100,
    batch_size=16,
    segment_length=64,
    log_every_steps=50,
    eval_every_steps=550,
    checkpoint_every_steps=300,
  )
  config.eval.update(batch_size=16, segment_length=128, memory_length=64)
  config.sample.update(
    prompts=('def ', 'class ', 'import os\n'),
    length=500,
    temperature=0.85,
    # Cutting the tail off would keep a small model in a run of one character.
    top_p=None,
  )
  return config
