"""What is in a corpus, in a few lines."""

import numpy as np

from txl_jax.data.corpora import Corpus
from txl_jax.data.cutoffs import expected_operations, propose_cutoffs


def describe(corpus: Corpus, d_model: int, div_val: int) -> str:
  """Sizes of a corpus, and cutoffs for the adaptive softmax.

  Args:
    corpus: prepared.
    d_model: width of the model that will read it.
    div_val: by how much its clusters get narrower.
  """
  vocabulary, lines = corpus.vocabulary, [f'Text        {corpus.name}']
  for split, ids in corpus.tokens.items():
    characters = vocabulary.characters(ids)
    line = f'{split:<12}{len(ids):,} tokens'
    if vocabulary.boundary is not None:
      documents = int((ids == vocabulary.boundary).sum())
      line += f' in {documents:,} document{"s" if documents != 1 else ""}'
    line += f', {characters / max(len(ids), 1):.2f} characters a token'
    unknown = getattr(vocabulary, 'unknown', None)
    if unknown is not None:
      line += f', {(ids == unknown).mean():.2%} unknown'
    lines.append(line)
  lines.append(f'Vocabulary  {vocabulary.size:,} tokens')
  lines.append(f'            --config.model.vocab_size={vocabulary.size}')
  return '\n'.join(lines + _cutoffs(corpus, d_model, div_val))


def _cutoffs(corpus: Corpus, d_model: int, div_val: int) -> list[str]:
  size = corpus.vocabulary.size
  counts_V = np.bincount(corpus.tokens['train'], minlength=size)
  cutoffs = propose_cutoffs(counts_V, d_model, div_val)
  if not cutoffs:
    return []
  plain, adaptive = (
    expected_operations(counts_V, option, d_model, div_val)
    for option in ((), cutoffs)
  )
  ends = ','.join(map(str, cutoffs))
  return [
    f"Cutoffs     --config.model.cutoffs='({ends},)'",
    f'            {adaptive / 1e6:.1f} million multiplications a token in the '
    f'softmax instead of {plain / 1e6:.1f}',
    f'            (at --config.model.d_model={d_model} and '
    f'--config.model.div_val={div_val})',
  ]
