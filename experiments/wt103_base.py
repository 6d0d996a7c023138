"""WikiText-103, Transformer-XL of 16 layers: the paper's standard model.

Command:    txl train --config=experiments/wt103_base.py --workdir=DIR
Hardware:   4 GPUs of 11 GB (the paper's PyTorch script)
Parameters: 151,107,538
Published:  24.0 test perplexity (Dai et al. 2019, table 1); 24.03 (the
  authors' README)

All settings are those of the paper's PyTorch script.
"""

from ml_collections import ConfigDict

from txl_jax.conversion import default_config


def get_config() -> ConfigDict:
  """Trains with segments and memory of 150, evaluates with 64 and 640."""
  config = default_config()
  config.model.update(
    vocab_size=267_735,
    cutoffs=(20_000, 40_000, 200_000),
    n_layers=16,
    n_heads=10,
    d_model=410,
    d_head=41,
    d_ff=2100,
    memory_length=150,
    dropout=0.1,
    attention_dropout=0.0,
  )
  config.data.corpus = 'wikitext103'
  config.optimizer.update(
    learning_rate=2.5e-4, schedule='cosine_official', clip_norm=0.25
  )
  config.train.update(steps=200_000, batch_size=60, segment_length=150)
  config.eval.update(
    batch_size=10,
    segment_length=64,
    memory_length=640,
    attention_span=640,
    clamp_length=400,
  )
  return config
