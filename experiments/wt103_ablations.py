"""WikiText-103, the ablation study: tables 6 and 10 of the paper.

Command:    txl train --config=experiments/wt103_ablations.py:ROW --workdir=DIR
Variants:   the rows below
Hardware:   not published; 4 GPUs of 11 GB are enough
Parameters: 128,007,688 with the paper's encoding (published: 128M)
Published:  test perplexity with the best attention length, by row

Only the number of parameters and the lengths were published. The sizes are
derived: at the widths of the standard model, whose vocabulary alone has 110M
parameters, 128M leave 7 layers. Rows without memory are trained on segments
alone. Published attention lengths are the evaluation's memory here where
positions are relative; where they are absolute, windows of 128 tokens slide by
8, so that each token has at least the 120 before it that were best.
"""

from ml_collections import ConfigDict
from wt103_base import get_config as get_base

# Segment and memory length in training, encoding, loss, attention length.
ROWS = {
  'xl': (128, 128, 'relative', 'full', 500),
  'xl_shaw': (128, 128, 'shaw', 'full', 256),
  'xl_half': (128, 128, 'relative', 'half', 460),
  'relative': (128, 0, 'relative', 'full', 260),
  'relative_half': (128, 0, 'relative', 'half', 120),
  'shaw': (128, 0, 'shaw', 'full', 120),
  'shaw_half': (128, 0, 'shaw', 'half', 120),
  'vaswani_half': (128, 0, 'sinusoid', 'half', 120),
  'alrfou_half': (128, 0, 'learned', 'half', 120),
  # Table 10: segments so long that they need the memory that 'xl' needs.
  'relative_176': (176, 0, 'relative', 'full', 400),
  'relative_half_172': (172, 0, 'relative', 'half', 120),
}
VARIANTS = {
  'xl': '26.77 test perplexity',
  'xl_shaw': '27.94 test perplexity',
  'xl_half': '28.33 test perplexity',
  'relative': '29.02 test perplexity',
  'relative_half': '30.10 test perplexity',
  'shaw': '29.75 test perplexity',
  'shaw_half': '30.50 test perplexity',
  'vaswani_half': '30.97 test perplexity',
  'alrfou_half': '31.16 test perplexity',
  'relative_176': '27.98 test perplexity',
  'relative_half_172': '28.83 test perplexity',
}


def get_config(row: str) -> ConfigDict:
  """A row of the tables; that of 151M parameters is `wt103_base.py`."""
  segment, memory, encoding, loss, attention_length = ROWS[row]
  config = get_base()
  config.model.update(
    n_layers=7,
    memory_length=memory,
    position_encoding=encoding,
    n_positions=None if encoding == 'relative' else segment + memory,
  )
  config.train.update(segment_length=segment, loss=loss)
  config.eval.update(
    memory_length=attention_length,
    attention_span=attention_length,
    clamp_length=None,
  )
  if encoding in ('sinusoid', 'learned'):
    config.eval.update(
      segment_length=segment, memory_length=0, attention_span=None, stride=8
    )
    config.sample.prompts = ()
  return config
