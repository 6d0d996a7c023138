"""The ablation study in small: table 6 on the source code of Python's library.

Command:    txl train --config=experiments/embedded_ablations.py:ROW
              --workdir=DIR
Variants:   the rows below
Hardware:   one GPU, about a minute a row on an H200
Parameters: 5.2M in each row, to 0.1 %
Published:  none; the figures measured stand in docs/experiments.md

All rows read the same tokens with parameters of the same number: what an
encoding saves goes into the feed-forward layers.
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config

SEGMENT = 128
# Memory in training, encoding, feed-forward width, loss.
ROWS = {
  'xl': (SEGMENT, 'relative', 1024, 'full'),
  'xl_shaw': (SEGMENT, 'shaw', 1019, 'full'),
  'xl_half': (SEGMENT, 'relative', 1024, 'half'),
  'relative': (0, 'relative', 1024, 'full'),
  'relative_half': (0, 'relative', 1024, 'half'),
  'shaw': (0, 'shaw', 1085, 'full'),
  'shaw_half': (0, 'shaw', 1085, 'half'),
  'vaswani_half': (0, 'sinusoid', 1152, 'half'),
  'alrfou_half': (0, 'learned', 1088, 'half'),
}
VARIANTS = dict.fromkeys(ROWS, 'none')


def get_config(row: str) -> ConfigDict:
  """A row of the table, evaluated with what it was trained with."""
  memory, encoding, d_ff, loss = ROWS[row]
  config = default_config()
  config.model.update(
    n_layers=6,
    n_heads=8,
    d_model=256,
    d_head=32,
    d_ff=d_ff,
    memory_length=memory,
    position_encoding=encoding,
    n_positions=None if encoding == 'relative' else SEGMENT + memory,
    dropout=0.1,
    init_std=0.03,
  )
  config.optimizer.update(
    learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=400
  )
  config.train.update(
    steps=6000,
    batch_size=64,
    segment_length=SEGMENT,
    loss=loss,
    eval_every_steps=2000,
    checkpoint_every_steps=2000,
  )
  config.eval.update(
    batch_size=64, segment_length=SEGMENT, memory_length=memory
  )
  if encoding in ('sinusoid', 'learned'):
    config.sample.prompts = ()
  return config
