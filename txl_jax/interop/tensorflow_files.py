"""Checkpoints of the paper's TensorFlow code: the models it released.

Kernels are transposed, biases are shared or stacked by layer, the softmax has
the clusters in order, a projection may be missing where the widths are equal,
the layer norm's epsilon is 1e-12, the memory starts with attended zeros, and
`same_length` shows mem_len + 1 keys. TensorFlow reads the file.
"""

import importlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.interop.imported import Imported, with_fields
from txl_jax.interop.layout import Entry, read_params
from txl_jax.interop.options import ask, div_val_of
from txl_jax.model import adaptive

ROOT = 'transformer/'
# Of training, not of the model.
LEFT_OUT = re.compile(r'/Adam(_1)?$|^global_step$|^beta[12]_power$')
ASKED = ('memory_length', 'attention_span', 'clamp_length')
# What no checkpoint of this code says, and all of them have.
QUIRKS = {'layer_norm_epsilon': 1e-12, 'memory_start': 'zeros'}
EMBEDDING, SOFTMAX = f'{ROOT}adaptive_embed/', f'{ROOT}adaptive_softmax/'


def find(path: pathlib.Path) -> pathlib.Path | None:
  """The prefix of the files of a checkpoint, without `.index`, or None.

  Args:
    path: the prefix, its index file, or a folder, whose newest is taken.
  """
  if path.is_dir():
    indices = sorted(path.glob('*.index'), key=lambda p: p.stat().st_mtime)
    return indices[-1].with_suffix('') if indices else None
  if path.suffix == '.index' and path.is_file():
    return path.with_suffix('')
  return path if path.with_name(f'{path.name}.index').is_file() else None


def read_tensorflow(prefix: pathlib.Path, given: Mapping[str, Any]) -> Imported:
  """The model of a checkpoint.

  Args:
    prefix: of its files.
    given: fields of ModelConfig that the user sets.

  Raises:
    InputError: naming what is missing, left over or of another shape.
  """
  return from_tensorflow(_open(prefix), given)


def from_tensorflow(
  arrays: Mapping[str, Any], given: Mapping[str, Any]
) -> Imported:
  """The model of the variables of a checkpoint: name -> array."""
  arrays = {n: a for n, a in arrays.items() if not LEFT_OUT.search(n)}
  ask(ASKED, given)
  config = ModelConfig(**_derive(arrays), **QUIRKS)
  config = with_fields(config, {'tie_projections': _tied(config, arrays)})
  config = with_fields(config, given)
  params = read_params(config, entries(config), arrays)
  return Imported('tensorflow', config, params)


class _Variable:
  """A variable of a checkpoint; `numpy.asarray` reads it."""

  def __init__(self, reader: Any, name: str, shape: tuple[int, ...]):
    self.reader, self.name, self.shape = reader, name, shape

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    array = self.reader.get_tensor(self.name)
    return array if dtype is None else array.astype(dtype, copy=False)


def _open(prefix: pathlib.Path) -> dict[str, _Variable]:
  try:
    tensorflow = importlib.import_module('tensorflow')
  except ImportError as error:
    raise InputError(
      "reading TensorFlow's checkpoints needs TensorFlow: pip install "
      "'txl_jax[tensorflow]'"
    ) from error
  try:
    reader = tensorflow.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
  except Exception as error:
    raise InputError(f'TensorFlow cannot read {prefix}: {error}') from error
  return {n: _Variable(reader, n, tuple(s)) for n, s in shapes.items()}


def _derive(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that names and shapes tell."""

  def shape(name: str, n_axes: int) -> tuple[int, ...]:
    if name not in arrays or len(arrays[name].shape) < n_axes:
      raise InputError(f'the checkpoint lacks {name}, or it has too few axes')
    return tuple(arrays[name].shape)

  n_tables = sum(name.endswith('/lookup_table') for name in arrays)
  by_cluster = f'{EMBEDDING}lookup_table' not in arrays
  tables = [
    shape(_in_cluster(EMBEDDING, i, by_cluster) + 'lookup_table', 2)
    for i in range(max(n_tables, 1))
  ]
  n_clusters = sum(n.startswith(SOFTMAX) and n.endswith('/b') for n in arrays)
  sizes = [shape(f'{SOFTMAX}cutoff_{i}/b', 1)[0] for i in range(n_clusters)]
  biases = shape(f'{ROOT}r_w_bias', 2)
  D, F = shape(f'{ROOT}layer_0/ff/layer_1/kernel', 2)
  return {
    'vocab_size': sum(n for n, _ in tables),
    'n_layers': sum(name.endswith('/ff/layer_1/kernel') for name in arrays),
    'n_heads': biases[-2],
    'd_model': D,
    'd_head': biases[-1],
    'd_ff': F,
    'd_embed': tables[0][1],
    'div_val': div_val_of([width for _, width in tables]),
    'untie_biases': len(biases) == 3,
    'cutoffs': tuple(itertools.accumulate(sizes[:-1])),
    # The code would make one of every width, or none of the model's.
    'square_projections': f'{EMBEDDING}cutoff_0/proj_W' in arrays
    or tables[0][1] != D,
  }


def _tied(config: ModelConfig, arrays: Mapping[str, Any]) -> tuple[bool, ...]:
  """A cluster that needs a projection and has none has the embedding's."""
  tied = tuple(
    adaptive.has_projection(config, i)
    and f'{SOFTMAX}cutoff_{i}/proj' not in arrays
    for i in range(len(config.cutoffs) + 1)
  )
  return tied if any(tied) else ()


def _in_cluster(scope: str, i: int, by_cluster: bool) -> str:
  return f'{scope}cutoff_{i}/' if by_cluster else scope


def entries(config: ModelConfig) -> list[Entry]:
  """The variables of a model."""
  return [
    *_biases(config),
    *_embedding(config),
    *(e for n in range(config.n_layers) for e in _layer(config, n)),
    *_softmax(config),
  ]


def _biases(config: ModelConfig) -> Iterator[Entry]:
  shape, path = (config.n_heads, config.d_head), ''
  if config.untie_biases:
    shape, path = (config.n_layers, *shape), 'layers.attention.'
  yield Entry(f'{ROOT}r_w_bias', shape, (f'{path}content_bias',))
  yield Entry(f'{ROOT}r_r_bias', shape, (f'{path}position_bias',))


def _embedding(config: ModelConfig) -> Iterator[Entry]:
  for i, (low, high) in enumerate(adaptive.table_bounds(config)):
    E = adaptive.cluster_width(config, i)
    scope = _in_cluster(EMBEDDING, i, config.div_val > 1)
    table, projection = f'embedding.table_{i}', f'embedding.projection_{i}'
    yield Entry(f'{scope}lookup_table', (high - low, E), (table,))
    if adaptive.has_projection(config, i):
      yield Entry(f'{scope}proj_W', (E, config.d_model), (projection,))


def _layer(config: ModelConfig, n: int) -> Iterator[Entry]:
  D, F, H, C = config.d_model, config.d_ff, config.n_heads, config.d_head

  def entry(name: str, shape: tuple, *paths: str, **more: Any) -> Entry:
    paths = tuple(f'layers.{path}' for path in paths)
    return Entry(f'{ROOT}layer_{n}/{name}', shape, paths, layer=n, **more)

  for theirs, ours in (('rel_attn', 'attention'), ('ff', 'feed_forward')):
    for name, part in (('gamma', 'scale'), ('beta', 'bias')):
      yield entry(f'{theirs}/LayerNorm/{name}', (D,), f'{ours}_norm.{part}')
  names = [f'attention.{name}' for name in ('query', 'key', 'value')]
  split = dict(split=(D, 3, H, C), axes=(1, 0, 2, 3))
  yield entry('rel_attn/qkv/kernel', (D, 3 * H * C), *names, **split)
  split = dict(split=(D, H, C))
  yield entry('rel_attn/r/kernel', (D, H * C), 'attention.relative', **split)
  split = dict(split=(H, C, D))
  yield entry('rel_attn/o/kernel', (H * C, D), 'attention.output', **split)
  for i, part, shape in ((1, 'inner', (D, F)), (2, 'outer', (F, D))):
    name, path = f'ff/layer_{i}', f'feed_forward.{part}'
    yield entry(f'{name}/kernel', shape, f'{path}_kernel')
    yield entry(f'{name}/bias', shape[1:], f'{path}_bias')


def _softmax(config: ModelConfig) -> Iterator[Entry]:
  n_tails, V = len(config.cutoffs), config.vocab_size
  if not n_tails:
    yield Entry(f'{SOFTMAX}bias', (V,), ('softmax.bias',))
    return
  head, E = f'{SOFTMAX}cutoff_0/cluster_', config.embed_width
  yield Entry(f'{head}W', (n_tails, E), ('softmax.cluster_weight',))
  yield Entry(f'{head}b', (n_tails,), ('softmax.cluster_bias',))
  tied = config.tie_projections or (False,) * (n_tails + 1)
  for i, (low, high) in enumerate(adaptive.cluster_bounds(config)):
    name, rows = f'{SOFTMAX}cutoff_{i}', (low, high)
    yield Entry(f'{name}/b', (high - low,), ('softmax.bias',), rows=rows)
    if adaptive.has_projection(config, i) and not tied[i]:
      shape = (adaptive.cluster_width(config, i), config.d_model)
      yield Entry(f'{name}/proj', shape, (f'softmax.projection_{i}',))
