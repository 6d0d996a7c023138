"""Reads pickles without running what they say.

Pickle is a small language, in which a file can name any function and have it
called. Here every name that a file may use stands in a list, and behind each
name is something of our own that only takes notes: nothing is imported, and no
function but those below is called.
"""

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from txl_jax.errors import InputError

_LAYERS = (
  'MemTransformerLM AdaptiveEmbedding PositionalEmbedding PositionwiseFF '
  'MultiHeadAttn RelMultiHeadAttn RelPartialLearnableMultiHeadAttn '
  'RelLearnableMultiHeadAttn DecoderLayer RelLearnableDecoderLayer '
  'RelPartialLearnableDecoderLayer'
)
_DATA = 'Corpus LMOrderedIterator LMShuffledIterator LMMultiFileIterator'
_SOFTMAX = 'ProjectedAdaptiveLogSoftmax'
_VOCABULARY = 'Vocab OpenAIVocab'
_RECONSTRUCT = '_reconstruct scalar'
# Module -> names of it that become stand-ins.
CLASSES = {
  'torch': 'Size device memory_format strided contiguous_format float16 '
  'bfloat16 float32 float64 uint8 int8 int16 int32 int64 bool',
  'torch.nn.modules.activation': 'ReLU',
  'torch.nn.modules.container': 'ModuleList ParameterList Sequential',
  'torch.nn.modules.dropout': 'Dropout',
  'torch.nn.modules.linear': 'Linear',
  'torch.nn.modules.normalization': 'LayerNorm',
  'torch.nn.modules.sparse': 'Embedding',
  'torch.nn.parallel.data_parallel': 'DataParallel',
  'torch.nn.parallel.distributed': 'DistributedDataParallel',
  'torch.nn.backends.thnn': '_get_thnn_function_backend',
  'argparse': 'Namespace',
  'numpy': 'ndarray dtype',
  'numpy.core.multiarray': _RECONSTRUCT,
  'numpy._core.multiarray': _RECONSTRUCT,
  '_codecs': 'encode',
  're': '_compile',
  # The paper's code and NVIDIA's.
  '__main__': f'{_DATA} Vocab',
  'data_utils': _DATA,
  'vocabulary': _VOCABULARY,
  'utils.vocabulary': _VOCABULARY,
  'mem_transformer': _LAYERS,
  'proj_adaptive_softmax': _SOFTMAX,
  'utils.proj_adaptive_softmax': _SOFTMAX,
  'utils.adaptive_softmax': 'AdaptiveLogSoftmax',
  'log_uniform_sampler': 'LogUniformSampler',
  'utils.log_uniform_sampler': 'LogUniformSampler',
  'utils.data_parallel': 'BalancedDataParallel',
  # What Hugging Face's tokenizer carries along.
  'sacremoses.normalize': 'MosesPunctNormalizer',
  'sacremoses.tokenize': 'MosesTokenizer MosesDetokenizer',
  'transformers.tokenization_utils': 'Trie',
  'transformers.tokenization_utils_base': 'AddedToken',
  'tokenizers': 'AddedToken',
}
_STAND_INS = {(m, n) for m, names in CLASSES.items() for n in names.split()}


class StandIn:
  """An object of a class that is in the list: what the file says of it.

  Attributes:
    module: where the class is defined.
    name: of the class.
    arguments: what it was made from.
    state: its attributes, mostly a dict.
    content: what was appended to it, or set at keys.
  """

  module = name = ''

  def __new__(cls, *arguments: Any, **named: Any) -> 'StandIn':
    """Notes what the object would have been made from."""
    self = super().__new__(cls)
    self.arguments = (*arguments, *named.items())
    self.state = {}
    self.content = []
    return self

  def __init__(self, *arguments: Any, **named: Any):
    pass

  def __setstate__(self, state: Any) -> None:
    self.state = state

  def __setitem__(self, key: Any, value: Any) -> None:
    self.content.append((key, value))

  def append(self, value: Any) -> None:
    """Notes a value."""
    self.content.append(value)

  def extend(self, values: Any) -> None:
    """Notes values."""
    self.content.extend(values)

  def attribute(self, name: str) -> Any:
    """One of its attributes; None if it has none of this name."""
    return self.state.get(name) if isinstance(self.state, dict) else None


def stand_in(module: str, name: str) -> type[StandIn]:
  """The class whose objects stand for those of `module.name`."""
  return type(name, (StandIn,), {'module': module, 'name': name})


# Python's own in place of the C version: its reads end where the pickle ends,
# which old PyTorch files rely on, and its memo grows with what is in the file.
class Unpickler(pickle._Unpickler):
  """Reads one pickle.

  Args:
    file: at the pickle's begin.
    known: (module, name) -> what is called in its place.
    persistent: turns a persistent id into an object; None = there are none.
  """

  def __init__(
    self,
    file: BinaryIO,
    known: dict[tuple[str, str], Callable] | None = None,
    persistent: Callable[[Any], Any] | None = None,
  ):
    # Python 2 wrote bytes for text; its words are UTF-8.
    super().__init__(file, encoding='utf-8', errors='surrogateescape')
    self._persistent = persistent
    # Fresh ones for each file, so that a file can change none for the next.
    self._names = {**_containers(), **(known or {})}

  def find_class(self, module: str, name: str) -> Any:
    """What stands for a name.

    Raises:
      InputError: for a name that is not in the list.
    """
    if (module, name) not in self._names:
      if (module, name) not in _STAND_INS:
        raise InputError(
          f'it asks for {module}.{name}, which no checkpoint needs; nothing '
          'of it was run'
        )
      self._names[module, name] = stand_in(module, name)
    return self._names[module, name]

  def persistent_load(self, pid: Any) -> Any:
    """The object that a persistent id stands for."""
    if self._persistent is None:
      raise InputError('it refers to data outside of itself')
    return self._persistent(pid)


def _containers() -> dict[tuple[str, str], Callable]:
  """Plain containers, as classes that no one else uses."""

  def reconstruct(cls: type, base: Any, state: Any) -> Any:
    return cls.__new__(cls)

  # Attributes, such as the versions in a state dict, are left out.
  mapping = type('Mapping', (dict,), {'__setstate__': lambda self, state: None})
  plain: dict[tuple[str, str], Callable] = {
    ('collections', 'OrderedDict'): mapping,
    ('collections', 'Counter'): mapping,
  }
  for module in ('builtins', '__builtin__'):
    plain[module, 'set'] = set
    plain[module, 'frozenset'] = frozenset
    plain[module, 'object'] = stand_in(module, 'object')
  for module in ('copyreg', 'copy_reg'):
    plain[module, '_reconstructor'] = reconstruct
  return plain
