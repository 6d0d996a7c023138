"""Parameters of the paper's PyTorch code (kimiyoung/transformer-xl)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model import adaptive

# By attn_type.
ENCODINGS = ('relative', 'shaw', 'sinusoid', 'learned')
REQUIRED = ('n_token', 'n_layer', 'n_head', 'd_model', 'd_head', 'd_inner')
# What the official model class assumes for the options that are not given.
DEFAULTS = {
  'mem_len': 0,
  'd_embed': None,
  'div_val': 1,
  'cutoffs': (),
  'tie_projs': (False,),
  'tie_weight': True,
  'same_length': False,
  'clamp_len': -1,
  'pre_lnorm': False,
  'attn_type': 0,
  'ext_len': 0,
  'dropout': 0.0,
  'dropatt': 0.0,
}


def from_official(
  arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> tuple[ModelConfig, dict]:
  """Configuration and parameters from the official PyTorch names.

  Args:
    arrays: name in the state dict -> array.
    options: the official argument names (`n_layer`, `d_inner`, `tie_projs`,
      `clamp_len`, ...); those that do not shape the model are ignored.

  Returns:
    The configuration and the parameters, in float32.

  Raises:
    InputError: naming the array or the option that is missing, left over, of
      another shape than expected, or not supported.
  """
  config = _config(arrays, options)
  reader = _Reader(arrays, config)
  embedding = _embedding(reader)
  params = {
    'embedding': embedding,
    'layers': _layers(reader),
    'softmax': _softmax(reader, embedding),
  }
  if config.position_encoding == 'relative':
    H, C = config.n_heads, config.d_head
    params['content_bias'] = reader.take('r_w_bias', H, C)
    params['position_bias'] = reader.take('r_r_bias', H, C)
  reader.finish()
  return config, params


def _config(
  arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> ModelConfig:
  missing = [name for name in REQUIRED if options.get(name) is None]
  if missing:
    raise InputError(f'the official options lack {", ".join(missing)}')
  get = {**DEFAULTS, **options}.__getitem__
  encoding = _encoding(get)
  clamp = get('clamp_len') if get('clamp_len') > 0 else None
  tied = tuple(map(bool, get('tie_projs')))
  return ModelConfig(
    vocab_size=get('n_token'),
    n_layers=get('n_layer'),
    n_heads=get('n_head'),
    d_model=get('d_model'),
    d_head=get('d_head'),
    d_ff=get('d_inner'),
    d_embed=get('d_embed') or get('d_model'),
    memory_length=get('mem_len'),
    attention_span=get('mem_len') if get('same_length') else None,
    # The official table for Shaw's encoding is cut to clamp_len rows.
    clamp_length=clamp and clamp - (encoding == 'shaw'),
    position_encoding=encoding,
    n_positions=_n_positions(encoding, arrays, options),
    cutoffs=tuple(get('cutoffs')),
    div_val=get('div_val'),
    tie_weights=get('tie_weight'),
    tie_projections=tied if any(tied) else (),
    pre_norm=get('pre_lnorm'),
    dropout=get('dropout'),
    attention_dropout=get('dropatt'),
  )


def _encoding(get: Callable[[str], Any]) -> str:
  encoding = ENCODINGS[_option(get, 'attn_type', range(len(ENCODINGS)))]
  _option(get, 'ext_len', [0])
  if encoding in ('sinusoid', 'learned'):
    # There the official code adds positions to the memory again and again,
    # and leaves queries out of the layer norm that comes first.
    _option(get, 'mem_len', [0])
    _option(get, 'pre_lnorm', [False])
  return encoding


def _option(get: Callable[[str], Any], name: str, supported: Sequence) -> Any:
  if get(name) not in supported:
    choices = ' or '.join(map(str, supported))
    raise InputError(
      f'the official option {name} must be {choices}, found {get(name)}'
    )
  return get(name)


def _n_positions(
  encoding: str, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> int | None:
  if encoding == 'relative':
    return None
  if encoding != 'sinusoid':
    return len(arrays['r_emb'][0]) if 'r_emb' in arrays else 1
  if options.get('tgt_len') is None:
    raise InputError('the official options lack tgt_len')
  return options['tgt_len']


class _Reader:
  """Hands out arrays once each, with their shapes checked."""

  def __init__(self, arrays: Mapping[str, np.ndarray], config: ModelConfig):
    self.config = config
    self.left = {name: np.asarray(array) for name, array in arrays.items()}
    # A buffer that follows from d_model.
    self.left.pop('pos_emb.inv_freq', None)

  def take(self, name: str, *shape: int) -> jnp.ndarray:
    if name not in self.left:
      raise InputError(f'the official arrays lack {name}')
    array = self.left.pop(name)
    if array.shape != shape:
      raise InputError(f'{name} must have shape {shape}, found {array.shape}')
    return jnp.asarray(array, jnp.float32)

  def stack(self, name: str, *shape: int) -> jnp.ndarray:
    """One array of each layer [N, ...]."""
    names = (f'layers.{n}.{name}' for n in range(self.config.n_layers))
    return jnp.stack([self.take(name, *shape) for name in names])

  def take_alias(self, name: str, same: jnp.ndarray) -> None:
    """Drops a second name of tied parameters, if it is there."""
    array = self.left.pop(name, None)
    if array is None:
      return
    if array.shape != same.shape or not np.array_equal(array, same):
      raise InputError(
        f'{name} differs from the embedding that the options tie it to'
      )

  def finish(self) -> None:
    if self.left:
      names = ', '.join(sorted(self.left))
      raise InputError(f'the options leave no place for the arrays {names}')


def _embedding(reader: _Reader) -> dict:
  config, result = reader.config, {}
  for i, (low, high) in enumerate(adaptive.table_bounds(config)):
    width = adaptive.cluster_width(config, i)
    name = f'word_emb.emb_layers.{i}.weight'
    result[f'table_{i}'] = reader.take(name, high - low, width)
    if adaptive.has_projection(config, i):
      name = f'word_emb.emb_projs.{i}'
      result[f'projection_{i}'] = reader.take(name, config.d_model, width).T
  return result


def _layers(reader: _Reader) -> dict:
  config = reader.config
  D, F = config.d_model, config.d_ff

  def norm(name: str) -> dict:
    return {
      'scale': reader.stack(f'{name}.weight', D),
      'bias': reader.stack(f'{name}.bias', D),
    }

  layers = {
    'attention': _attention(reader),
    'attention_norm': norm('dec_attn.layer_norm'),
    'feed_forward': {
      'inner_kernel': reader.stack('pos_ff.CoreNet.0.weight', F, D).mT,
      'inner_bias': reader.stack('pos_ff.CoreNet.0.bias', F),
      'outer_kernel': reader.stack('pos_ff.CoreNet.3.weight', D, F).mT,
      'outer_bias': reader.stack('pos_ff.CoreNet.3.bias', D),
    },
    'feed_forward_norm': norm('pos_ff.layer_norm'),
  }
  if config.position_encoding == 'learned':
    shape = (config.n_layers, config.n_positions, config.n_heads, config.d_head)
    table = reader.take('r_emb', *shape)
    layers['positions'] = {'table': table.reshape(*shape[:2], D)}
  return layers


def _attention(reader: _Reader) -> dict:
  config = reader.config
  N, D, H, C = config.n_layers, config.d_model, config.n_heads, config.d_head

  def heads(name: str, n: int) -> jnp.ndarray:
    """Of n projections to heads in one matrix [n, N, D, H, C]."""
    matrix = reader.stack(f'dec_attn.{name}.weight', n * H * C, D)
    return matrix.reshape(N, n, H, C, D).transpose(1, 0, 4, 2, 3)

  if config.absolute_positions:
    query_key_value = (*heads('q_net', 1), *heads('kv_net', 2))
  else:
    query_key_value = heads('qkv_net', 3)
  result = dict(zip(('query', 'key', 'value'), query_key_value))
  output = reader.stack('dec_attn.o_net.weight', D, H * C)
  result['output'] = output.reshape(N, D, H, C).transpose(0, 2, 3, 1)
  if config.position_encoding == 'relative':
    (result['relative'],) = heads('r_net', 1)
  elif config.position_encoding == 'shaw':
    P = config.n_positions
    # The official tables begin with the largest distance.
    result['distance_embedding'] = reader.take('r_emb', N, P, H, C)[:, ::-1]
    result['distance_bias'] = reader.take('r_bias', N, P, H)[:, ::-1]
    result['content_bias'] = reader.take('r_w_bias', N, H, C)
  return result


def _softmax(reader: _Reader, embedding: dict) -> dict:
  config, result, biases = reader.config, {}, []
  for i, (low, high) in enumerate(adaptive.table_bounds(config)):
    biases.append(reader.take(f'crit.out_layers.{i}.bias', high - low))
    name = f'crit.out_layers.{i}.weight'
    if config.tie_weights:
      reader.take_alias(name, embedding[f'table_{i}'])
    else:
      width = adaptive.cluster_width(config, i)
      result[f'table_{i}'] = reader.take(name, high - low, width)
  result['bias'] = jnp.concatenate(biases)
  n_tails = len(config.cutoffs)
  if n_tails:
    # The official code counts the clusters' columns from the end.
    weight = reader.take('crit.cluster_weight', n_tails, config.embed_width)
    result['cluster_weight'] = weight[::-1]
    result['cluster_bias'] = reader.take('crit.cluster_bias', n_tails)[::-1]
  tied = config.tie_projections or (False,) * (n_tails + 1)
  for i in range(n_tails + 1):
    if not adaptive.has_projection(config, i):
      continue
    name, width = f'crit.out_projs.{i}', adaptive.cluster_width(config, i)
    if tied[i]:
      source = i if config.div_val > 1 else 0
      reader.take_alias(name, embedding[f'projection_{source}'].T)
    else:
      result[f'projection_{i}'] = reader.take(name, config.d_model, width).T
  return result
