"""WikiText-103, the base model in NVIDIA's sizes: powers of two.

Command:    txl train --config=experiments/wt103_base_nvidia.py --workdir=DIR
Hardware:   8 A100 of 40 GB, 76 minutes with mixed precision (NVIDIA)
Parameters: 191,950,298
Published:  23.24 test perplexity, the mean of 16 seeds (NVIDIA
  DeepLearningExamples)

Evaluation of NVIDIA's code sees one key more than the paper's.
"""

from ml_collections import ConfigDict
from wt103_base import get_config as get_base


def get_config() -> ConfigDict:
  """LAMB, large batches and 40,000 steps."""
  config = get_base()
  config.model.update(
    cutoffs=(19_997, 39_997, 199_997),
    tie_projections=(False, True, True, True),
    d_model=512,
    n_heads=8,
    d_head=64,
    d_ff=2048,
    memory_length=192,
  )
  config.optimizer.update(
    name='lamb',
    learning_rate=0.01,
    final_learning_rate=0.001,
    schedule='cosine',
    warmup_steps=1000,
  )
  config.train.update(
    steps=40_000, batch_size=256, segment_length=192, eval_every_steps=5000
  )
  config.eval.update(batch_size=16, attention_span=641)
  return config
