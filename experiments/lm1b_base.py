"""One Billion Word, Transformer-XL of 20 layers.

Command:    txl train --config=experiments/lm1b_base.py --workdir=DIR
Variants:   :script (the published script: 18 layers, 4,096)
Hardware:   4 GPUs (the paper's PyTorch script, for 18 layers)
Parameters: 469,020,547 (published: 0.46B)
Published:  23.5 test perplexity (Dai et al. 2019, table 4)

The published script has 18 layers with feed-forward layers of 4,096; its
authors corrected that to 20 and 6,144 (kimiyoung/transformer-xl, issue 69). All
else is the PyTorch script's. The 23.5 were measured with the authors'
TensorFlow code, which predicts one certain token a sentence more.
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config

VARIANTS = {'script': 'none'}


def get_config(sizes: str = 'corrected') -> ConfigDict:
  """Trains with segments and memory of 32, evaluates with memory 128."""
  n_layers, d_ff = (18, 4096) if sizes == 'script' else (20, 6144)
  config = default_config()
  config.model.update(
    vocab_size=793_472,
    cutoffs=(60_000, 100_000, 640_000),
    div_val=4,
    n_layers=n_layers,
    n_heads=8,
    d_model=1024,
    d_head=128,
    d_ff=d_ff,
    memory_length=32,
    dropout=0.0,
    attention_dropout=0.0,
  )
  config.data.corpus = 'lm1b'
  config.optimizer.update(
    learning_rate=2.5e-4,
    schedule='cosine_official',
    warmup_steps=20_000,
    clip_norm=0.25,
  )
  config.train.update(steps=500_000, batch_size=224, segment_length=32)
  config.eval.update(
    batch_size=64, segment_length=32, memory_length=128, attention_span=128
  )
  return config
