"""The arguments of the paper's code, and what they are in `ModelConfig`.

NVIDIA's code and Hugging Face's have the same, in part under other names.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.interop.layout import are_tied

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
# Options that no shape tells, and the fields that they set.
ASKED = {
  'mem_len': 'memory_length',
  'same_length': 'attention_span',
  'clamp_len': 'clamp_length',
  'pre_lnorm': 'pre_norm',
}
# Fields of ModelConfig that the paper's code has no argument for.
FIXED = {
  'untie_biases': False,
  'square_projections': True,
  'layer_norm_epsilon': 1e-5,
  'memory_start': 'empty',
}


def config_of(
  arrays: Mapping[str, Any], options: Mapping[str, Any], extra: int = 0
) -> ModelConfig:
  """The configuration that official arguments mean.

  Args:
    arrays: the state dict, for sizes that only it tells.
    options: the arguments; those that do not shape the model are ignored.
    extra: keys that `same_length` shows beyond `mem_len`.

  Raises:
    InputError: naming the option that is missing or not supported.
  """
  missing = [name for name in REQUIRED if options.get(name) is None]
  if missing:
    raise InputError(f'the official options lack {", ".join(missing)}')
  get = {**DEFAULTS, **options}.__getitem__
  encoding = _encoding(get)
  clamp = get('clamp_len') if get('clamp_len') > 0 else None
  cutoffs, tied = tuple(get('cutoffs')), tuple(map(bool, get('tie_projs')))
  tied += (False,) * (len(cutoffs) + 1 - len(tied))
  return ModelConfig(
    vocab_size=get('n_token'),
    n_layers=get('n_layer'),
    n_heads=get('n_head'),
    d_model=get('d_model'),
    d_head=get('d_head'),
    d_ff=get('d_inner'),
    d_embed=get('d_embed') or get('d_model'),
    memory_length=get('mem_len'),
    attention_span=get('mem_len') + extra if get('same_length') else None,
    # The official table for Shaw's encoding is cut to clamp_len rows.
    clamp_length=clamp and clamp - (encoding == 'shaw'),
    position_encoding=encoding,
    n_positions=_n_positions(encoding, arrays, options),
    cutoffs=cutoffs,
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
  encoding: str, arrays: Mapping[str, Any], options: Mapping[str, Any]
) -> int | None:
  if encoding == 'relative':
    return None
  if encoding != 'sinusoid':
    return arrays['r_emb'].shape[1] if 'r_emb' in arrays else 1
  if options.get('tgt_len') is None:
    raise InputError('the official options lack tgt_len')
  return options['tgt_len']


def complete(
  arrays: Mapping[str, Any],
  known: Mapping[str, Any],
  given: Mapping[str, Any],
) -> dict[str, Any]:
  """The options of a state dict: what its shapes tell, then what is known.

  Args:
    arrays: the state dict, under official names.
    known: options that stand in the file or beside it.
    given: fields of ModelConfig that the user sets.

  Raises:
    InputError: naming the fields that nothing tells.
  """
  options = {**derive(arrays, given), **known}
  asked = {**ASKED, 'cutoffs': 'cutoffs', 'n_head': 'n_heads'}
  if options['attn_type'] == ENCODINGS.index('sinusoid'):
    asked['tgt_len'] = 'n_positions'
    options.setdefault('tgt_len', given.get('n_positions'))
  ask((f for o, f in asked.items() if options.get(o) is None), given)
  return options


def ask(fields: Iterable[str], given: Mapping[str, Any]) -> None:
  """Raises an InputError with the fields that the user has not given."""
  missing = [field for field in fields if field not in given]
  if missing:
    names = ' '.join(f'--config.model.{name}=...' for name in missing)
    raise InputError(f'the checkpoint does not tell some fields, give {names}')


def derive(arrays: Mapping[str, Any], given: Mapping[str, Any]) -> dict:
  """The official options that names and shapes tell.

  Raises:
    InputError: naming an array that every model has, if it is missing.
  """
  tables = _numbered(arrays, 'word_emb.emb_layers.{}.weight')
  n_layers = len(_numbered(arrays, 'layers.{}.pos_ff.CoreNet.0.weight'))
  inner = _shape(arrays, 'layers.0.pos_ff.CoreNet.0.weight')
  widths = [table.shape[1] for table in tables]
  n_rows = [table.shape[0] for table in tables]
  options = {
    'n_token': sum(n_rows),
    'n_layer': n_layers,
    'd_model': inner[1],
    'd_inner': inner[0],
    'd_embed': _shape(arrays, 'word_emb.emb_layers.0.weight')[1],
    'div_val': div_val_of(widths),
    'attn_type': _attn_type(arrays),
    'tie_weight': _tied_tables(arrays, len(tables)),
    'tie_projs': _tied_projections(arrays, len(tables)),
  }
  if len(tables) > 1 or 'crit.cluster_weight' not in arrays:
    options['cutoffs'] = list(itertools.accumulate(n_rows[:-1]))
  n_columns = _shape(arrays, 'layers.0.dec_attn.o_net.weight')[1]
  n_heads = given.get('n_heads') or _n_heads(arrays)
  if n_heads:
    options |= {'n_head': n_heads, 'd_head': n_columns // n_heads}
  return options


def _numbered(arrays: Mapping[str, Any], name: str) -> list[Any]:
  names = map(name.format, itertools.count())
  return [arrays[n] for n in itertools.takewhile(arrays.__contains__, names)]


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...]:
  if name not in arrays or len(arrays[name].shape) != 2:
    raise InputError(f'the arrays lack {name}, or it is no matrix')
  return tuple(arrays[name].shape)


def div_val_of(widths: list[int]) -> int:
  """The smallest that gives these widths; 1 for a single table."""
  for div_val in range(1, widths[0] + 1 if widths else 1):
    if all(widths[0] // div_val**i == w for i, w in enumerate(widths)):
      return div_val
  raise InputError(f'no div_val gives embeddings of the widths {widths}')


def _attn_type(arrays: Mapping[str, Any]) -> int:
  if 'layers.0.dec_attn.kv_net.weight' in arrays:
    return ENCODINGS.index('learned' if 'r_emb' in arrays else 'sinusoid')
  return ENCODINGS.index('shaw' if 'r_emb' in arrays else 'relative')


def _n_heads(arrays: Mapping[str, Any]) -> int | None:
  """From an array [..., H, C]."""
  for name in ('r_w_bias', 'layers.0.dec_attn.r_w_bias', 'r_emb'):
    if name in arrays and len(arrays[name].shape) >= 2:
      return arrays[name].shape[-2]
  return None


def _tied_tables(arrays: Mapping[str, Any], n_tables: int) -> bool:
  """An output layer that is not there is tied, too."""
  pairs = (
    (f'crit.out_layers.{i}.weight', f'word_emb.emb_layers.{i}.weight')
    for i in range(n_tables)
  )
  return all(
    a not in arrays or are_tied(arrays[a], arrays[b]) for a, b in pairs
  )


def _tied_projections(arrays: Mapping[str, Any], n_tables: int) -> list[bool]:
  outer = _numbered(arrays, 'crit.out_projs.{}')
  inner = _numbered(arrays, 'word_emb.emb_projs.{}')
  if n_tables == 1:
    inner *= len(outer)
  return [are_tied(a, b) for a, b in zip(outer, inner)] or [False]


def options_of(
  config: ModelConfig, extra: int = 0, fixed: Mapping[str, Any] = FIXED
) -> dict[str, Any]:
  """The official arguments of a model: the inverse of `config_of`.

  Args:
    config: the model.
    extra: keys that `same_length` shows beyond `mem_len`.
    fixed: fields that only one value can be said of.

  Raises:
    InputError: naming the field that there is no argument for.
  """
  spans = (None, config.memory_length + extra)
  can_be = {name: (value,) for name, value in fixed.items()}
  can_be['attention_span'] = spans
  for name, values in can_be.items():
    if getattr(config, name) not in values:
      raise InputError(
        f'config.model.{name} is {getattr(config, name)}, which this format '
        f'cannot say; it can say {" or ".join(map(str, values))}'
      )
  if config.clamp_length == 0:
    raise InputError('config.model.clamp_length is 0, which no format can say')
  clamp = config.clamp_length or -1
  shaw = config.position_encoding == 'shaw' and clamp > 0
  n_clusters, M = len(config.cutoffs) + 1, config.memory_length
  return {
    'n_token': config.vocab_size,
    'n_layer': config.n_layers,
    'n_head': config.n_heads,
    'd_model': config.d_model,
    'd_head': config.d_head,
    'd_inner': config.d_ff,
    'dropout': config.dropout,
    'dropatt': config.attention_dropout,
    'tie_weight': config.tie_weights,
    'd_embed': config.embed_width,
    'div_val': config.div_val,
    'tie_projs': list(config.tie_projections or [False] * n_clusters),
    'pre_lnorm': config.pre_norm,
    # It shapes only the tables of the other encodings.
    'tgt_len': (config.n_positions or M + max(M, 1)) - M,
    'ext_len': 0,
    'mem_len': M,
    'cutoffs': list(config.cutoffs),
    'same_length': config.attention_span is not None,
    'attn_type': ENCODINGS.index(config.position_encoding),
    'clamp_len': clamp + shaw,
    'sample_softmax': -1,
  }
