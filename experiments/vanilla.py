"""The vanilla Transformer of Al-Rfou et al. (2018) on enwik8 and text8.

Command:    txl train --config=experiments/vanilla.py --workdir=DIR, then
  txl eval --workdir=DIR --split=test --config.eval.stride=1
Variants:   :enwik8_64, :text8_12, :text8_64 (corpus and layers)
Hardware:   not published
Parameters: 41,054,412 with 12 layers (published: 44M); 218,503,372 with 64
  (published: 235M)
Published:  1.11 bpc on enwik8 with 12 layers, 1.06 with 64; 1.18 and 1.13 on
  text8 (Dai et al. 2019, tables 2 and 3)

Fixed segments, no memory, and embeddings of absolute position added in each
layer. Evaluation slides a window by one token, so each token costs as much work
as a whole segment in training; validation during training scores segments. The
published counts are larger by what two softmaxes of 256 symbols in each layer
need, those of the auxiliary losses. They are not reproduced here; the deeper
model is known to suffer without them. The number of heads is that of the
12-layer Transformer-XL.
"""

from enwik8_base import get_config as get_enwik8
from ml_collections import ConfigDict

VARIANTS = {
  'enwik8_64': '1.06 bpc',
  'text8_12': '1.18 bpc',
  'text8_64': '1.13 bpc',
}


def get_config(variant: str = 'enwik8_12') -> ConfigDict:
  """Segments of 512, momentum at a constant rate, dropout of 0.55."""
  corpus, layers = variant.split('_')
  config = get_enwik8()
  config.model.update(
    vocab_size={'enwik8': 204, 'text8': 27}[corpus],
    n_layers=int(layers),
    memory_length=0,
    position_encoding='learned',
    n_positions=512,
    dropout=0.55,
    attention_dropout=0.55,
  )
  config.data.corpus = corpus
  config.optimizer.update(
    name='sgd', learning_rate=0.003, final_learning_rate=0.003, b1=0.99
  )
  config.train.update(steps=4_000_000, batch_size=16, segment_length=512)
  config.eval.update(
    segment_length=512,
    memory_length=0,
    attention_span=None,
    clamp_length=None,
  )
  config.sample.prompts = ()
  return config
