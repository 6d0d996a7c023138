"""Penn Treebank, word level, Transformer-XL of 12 layers.

Command:    txl train --config=experiments/ptb.py --workdir=DIR
Hardware:   not published
Parameters: 24,073,420 (published: 24M)
Published:  54.52 test perplexity (Dai et al. 2019, table 5)

Neither code nor settings were published, only that variational dropout and
weight averaging were used, which this configuration does not have. The sizes
are derived: the widths of the standard WikiText-103 model, 12 layers, and
feed-forward layers of 1,000 to arrive at 24M parameters. The dropout rates are
those of models of this size on this corpus, the schedule is the WikiText-103
one over about 200 passes through the text. Nobody has run it yet.
"""

from ml_collections import ConfigDict
from wt103_base import get_config as get_wt103


def get_config() -> ConfigDict:
  """A narrow model with strong dropout."""
  config = get_wt103()
  config.model.update(
    vocab_size=10_000,
    cutoffs=(),
    n_layers=12,
    d_ff=1000,
    memory_length=70,
    dropout=0.5,
    attention_dropout=0.2,
  )
  config.data.corpus = 'ptb'
  config.optimizer.warmup_steps = 1000
  config.train.update(
    steps=40_000,
    batch_size=60,
    segment_length=70,
    eval_every_steps=1000,
    checkpoint_every_steps=1000,
  )
  config.eval.update(
    segment_length=64,
    memory_length=128,
    attention_span=128,
    clamp_length=None,
  )
  return config
