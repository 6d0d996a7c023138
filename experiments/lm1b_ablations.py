"""One Billion Word, the ablation study: table 7 of the paper.

Command:    txl train --config=experiments/lm1b_ablations.py:ROW --workdir=DIR
Variants:   xl (the paper's encoding), shaw, relative (no recurrence)
Hardware:   not published
Parameters: 301,166,467 with the paper's encoding (published: about 0.3B)
Published:  test perplexity by row

Sentences are short, so what is compared here is not memory beyond them. Layers,
steps and about the count were published. The feed-forward layers of 2,048 are
derived: at the widths of the base model they give 20 layers 0.3B parameters.
"""

from lm1b_base import get_config as get_base
from ml_collections import ConfigDict

VARIANTS = {
  'xl': '25.2 test perplexity',
  'shaw': '25.7 test perplexity',
  'relative': '27.1 test perplexity',
}


def get_config(row: str) -> ConfigDict:
  """A row of the table."""
  config = get_base()
  config.model.d_ff = 2048
  config.train.steps = 400_000
  if row == 'shaw':
    config.model.update(position_encoding='shaw', n_positions=64)
  if row == 'relative':
    config.model.memory_length = 0
    config.eval.update(memory_length=0, attention_span=None)
  return config
