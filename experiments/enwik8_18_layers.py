"""enwik8, Transformer-XL of 18 layers.

Command:    txl train --config=experiments/enwik8_18_layers.py --workdir=DIR
Hardware:   not published
Parameters: 87,965,708 (published: 88M)
Published:  1.03 bpc (Dai et al. 2019, table 2)

Only the number of layers, the parameters and the result were published. The
sizes here are derived from them. The 12-layer model has width 512 and a
feed-forward layer 4 times as wide, the 24-layer model 1,024 and 3 times; 8
heads divide both widths. With width 640, of those between the only multiple
of 128 that comes near the count, 88M parameters need a feed-forward layer of
2,208, or 3.45 times the width. Everything else is as for 24 layers.
"""

from enwik8_large import get_config as get_large
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The 24-layer model's settings with derived sizes."""
  config = get_large()
  config.model.update(n_layers=18, n_heads=8, d_model=640, d_head=80, d_ff=2208)
  return config
