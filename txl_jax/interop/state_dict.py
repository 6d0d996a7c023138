"""The layout of the PyTorch implementations, which share most names.

`entries` gives the names of the paper's code; NVIDIA's and Hugging Face's are
renamed from them (nvidia.py, hugging_face.py).
"""

from collections.abc import Iterator

import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.interop.layout import Entry
from txl_jax.model import adaptive

FREQUENCIES = 'pos_emb.inv_freq'


def entries(config: ModelConfig) -> list[Entry]:
  """The state dict of the paper's code for a model.

  Args:
    config: the model. With `untie_biases` each layer has u and v, which the
      paper's code cannot have, but Hugging Face's has.
  """
  return [
    *_biases(config),
    *_embedding(config),
    *(e for n in range(config.n_layers) for e in _layer(config, n)),
    *_softmax(config),
  ]


def frequencies(config: ModelConfig) -> np.ndarray:
  """The buffer of every sinusoidal model: it follows from the width."""
  D = config.d_model
  exponents = (np.arange(0, D, 2) / D).astype(np.float32)
  # Rounded after every step, as there.
  powers = (10000 ** exponents.astype(np.float64)).astype(np.float32)
  return np.float32(1) / powers


def _biases(config: ModelConfig) -> Iterator[Entry]:
  N, H, C = config.n_layers, config.n_heads, config.d_head
  P, encoding = config.n_positions, config.position_encoding
  if encoding == 'relative' and not config.untie_biases:
    yield Entry('r_w_bias', (H, C), ('content_bias',))
    yield Entry('r_r_bias', (H, C), ('position_bias',))
  if encoding == 'shaw':
    # The official tables begin with the largest distance.
    path = 'layers.attention.'
    tables, biases = (path + 'distance_embedding',), (path + 'distance_bias',)
    yield Entry('r_emb', (N, P, H, C), tables, reverse=1)
    yield Entry('r_w_bias', (N, H, C), (path + 'content_bias',))
    yield Entry('r_bias', (N, P, H), biases, reverse=1)
  if encoding == 'learned':
    table, shape = ('layers.positions.table',), (N, P, H, C)
    yield Entry('r_emb', shape, table, split=(N, P, H * C))


def _embedding(config: ModelConfig) -> Iterator[Entry]:
  for i, (low, high) in enumerate(adaptive.table_bounds(config)):
    E = adaptive.cluster_width(config, i)
    name = f'word_emb.emb_layers.{i}.weight'
    yield Entry(name, (high - low, E), (f'embedding.table_{i}',))
  for i in range(len(adaptive.table_bounds(config))):
    if adaptive.has_projection(config, i):
      yield _projection(config, i, 'word_emb.emb_projs', 'embedding')


def _projection(config: ModelConfig, i: int, name: str, part: str) -> Entry:
  shape = (config.d_model, adaptive.cluster_width(config, i))
  path = f'{part}.projection_{i}'
  return Entry(f'{name}.{i}', shape, (path,), axes=(1, 0))


def _layer(config: ModelConfig, n: int) -> Iterator[Entry]:
  D, F = config.d_model, config.d_ff

  def entry(name: str, path: str, *shape: int, **more) -> Entry:
    name, path = f'layers.{n}.{name}', f'layers.{path}'
    return Entry(name, shape, (path,), layer=n, **more)

  yield from _attention(config, n)
  for theirs, ours in (
    ('dec_attn', 'attention_norm'),
    ('pos_ff', 'feed_forward_norm'),
  ):
    yield entry(f'{theirs}.layer_norm.weight', f'{ours}.scale', D)
    yield entry(f'{theirs}.layer_norm.bias', f'{ours}.bias', D)
  for theirs, ours, n_in, n_out in ((0, 'inner', D, F), (3, 'outer', F, D)):
    name, path = f'pos_ff.CoreNet.{theirs}', f'feed_forward.{ours}'
    kernel = f'{path}_kernel'
    yield entry(f'{name}.weight', kernel, n_out, n_in, axes=(1, 0))
    yield entry(f'{name}.bias', f'{path}_bias', n_out)


def _attention(config: ModelConfig, n: int) -> Iterator[Entry]:
  D, H, C = config.d_model, config.n_heads, config.d_head

  def heads(name: str, *paths: str) -> Entry:
    """Projections to heads, one below the other in one matrix."""
    shape = (len(paths) * H * C, D)
    if len(paths) == 1:
      split, axes = (H, C, D), (2, 0, 1)
    else:
      split, axes = (len(paths), H, C, D), (0, 3, 1, 2)
    return make(f'{name}.weight', shape, *paths, split=split, axes=axes)

  def make(name: str, shape: tuple, *paths: str, **more) -> Entry:
    paths = tuple(f'layers.attention.{path}' for path in paths)
    return Entry(f'layers.{n}.dec_attn.{name}', shape, paths, layer=n, **more)

  if config.absolute_positions:
    yield heads('q_net', 'query')
    yield heads('kv_net', 'key', 'value')
  else:
    yield heads('qkv_net', 'query', 'key', 'value')
  split, axes = (D, H, C), (1, 2, 0)
  yield make('o_net.weight', (D, H * C), 'output', split=split, axes=axes)
  if config.position_encoding == 'relative':
    yield heads('r_net', 'relative')
    if config.untie_biases:
      yield make('r_w_bias', (H, C), 'content_bias')
      yield make('r_r_bias', (H, C), 'position_bias')


def _softmax(config: ModelConfig) -> Iterator[Entry]:
  n_tails = len(config.cutoffs)
  if n_tails:
    # The official code counts the clusters' columns from the end.
    shape, path = (n_tails, config.embed_width), 'softmax.cluster_'
    names = (path + 'weight',), (path + 'bias',)
    yield Entry('crit.cluster_weight', shape, names[0], reverse=0)
    yield Entry('crit.cluster_bias', shape[:1], names[1], reverse=0)
  for i, (low, high) in enumerate(adaptive.table_bounds(config)):
    name, shape = f'crit.out_layers.{i}', (high - low,)
    yield Entry(f'{name}.bias', shape, ('softmax.bias',), rows=(low, high))
    shape = (high - low, adaptive.cluster_width(config, i))
    part, same = 'softmax', ''
    if config.tie_weights:
      part, same = 'embedding', f'word_emb.emb_layers.{i}.weight'
    path = (f'{part}.table_{i}',)
    yield Entry(f'{name}.weight', shape, path, same_as=same)
  tied = config.tie_projections or (False,) * (n_tails + 1)
  for i in range(n_tails + 1):
    if adaptive.has_projection(config, i):
      yield _output_projection(config, i, tied[i])


def _output_projection(config: ModelConfig, i: int, tied: bool) -> Entry:
  name = 'crit.out_projs'
  if not tied:
    return _projection(config, i, name, 'softmax')
  source = i if config.div_val > 1 else 0
  entry = _projection(config, source, name, 'embedding')
  same = f'word_emb.emb_projs.{source}'
  return Entry(
    f'{name}.{i}', entry.shape, entry.paths, axes=(1, 0), same_as=same
  )
