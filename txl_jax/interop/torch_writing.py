"""Writes files that `torch.load` reads, without PyTorch.

The archive of `torch.save`: a pickle that describes the objects, and a record
of raw numbers for each storage. The pickle is put together here, from its few
instructions for plain objects and tensors.
"""

import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from txl_jax.interop.torch_files import STORAGES, dense
from txl_jax.interop.unpickler import StandIn

STORAGE_NAMES = {np.dtype(v): name for name, v in STORAGES.items()}


def save_torch(path: str | os.PathLike, value: Any) -> None:
  """Writes plain objects, arrays and stand-ins as `torch.save` would.

  Args:
    path: of the file.
    value: None, bool, int, float, str, list, tuple, mapping, array or
      `StandIn`, nested. The same array object in two places becomes two
      tensors of one storage.

  Raises:
    TypeError: for anything else.
  """
  pickler = _Pickler()
  pickler.write(value)
  root = pathlib.Path(path).stem
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr(f'{root}/data.pkl', pickler.finished())
    archive.writestr(f'{root}/byteorder', b'little')
    for key, array in enumerate(pickler.arrays):
      with archive.open(
        f'{root}/data/{key}', 'w', force_zip64=array.nbytes >= 2**31
      ) as record:
        record.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    archive.writestr(f'{root}/version', b'3\n')


def save_pickle(path: str | os.PathLike, value: Any) -> None:
  """Writes plain objects as a plain pickle; see `save_torch`."""
  pickler = _Pickler()
  pickler.write(value)
  pathlib.Path(path).write_bytes(pickler.finished())


class _Pickler:
  """Instructions of pickle's protocol 2.

  Attributes:
    arrays: that the instructions refer to, by number.
  """

  def __init__(self):
    self.arrays: list[np.ndarray] = []
    self._keys: dict[int, int] = {}
    self._parts = [b'\x80\x02']

  def finished(self) -> bytes:
    """The whole pickle."""
    return b''.join([*self._parts, b'.'])

  def write(self, value: Any) -> None:
    """Instructions that leave a value on the stack."""
    emit = self._parts.append
    if value is None or isinstance(value, bool):
      emit({None: b'N', True: b'\x88', False: b'\x89'}[value])
    elif isinstance(value, int):
      raw = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
      emit(b'\x8a' + bytes([len(raw)]) + raw)
    elif isinstance(value, float):
      emit(b'G' + struct.pack('>d', value))
    elif isinstance(value, str):
      raw = value.encode('utf-8', 'surrogatepass')
      emit(b'X' + struct.pack('<I', len(raw)) + raw)
    elif isinstance(value, list):
      self._all(b'](', value, b'e')
    elif isinstance(value, tuple):
      self._all(b'(', value, b't')
    elif isinstance(value, Mapping):
      self._all(b'}(', (x for item in value.items() for x in item), b'u')
    elif isinstance(value, StandIn):
      self._stand_in(value)
    elif hasattr(value, '__array__'):
      self._tensor(value)
    else:
      raise TypeError(f'cannot write a {type(value).__name__}')

  def _all(self, begin: bytes, values: Any, end: bytes) -> None:
    self._parts.append(begin)
    for value in values:
      self.write(value)
    self._parts.append(end)

  def _name(self, module: str, name: str) -> None:
    self._parts.append(f'c{module}\n{name}\n'.encode())

  def _stand_in(self, value: StandIn) -> None:
    self._name(value.module, value.name)
    self.write(value.arguments)
    self._parts.append(b'\x81')
    self.write(value.state)
    self._parts.append(b'b')

  def _tensor(self, value: Any) -> None:
    # By identity: whoever calls holds the objects, so that none is reused.
    key = self._keys.setdefault(id(value), len(self.arrays))
    if key == len(self.arrays):
      self.arrays.append(np.asarray(value))
    array = self.arrays[key]
    self._name('torch._utils', '_rebuild_tensor_v2')
    self._parts.append(b'((')
    self.write('storage')
    self._name('torch', STORAGE_NAMES[array.dtype])
    for part in (str(key), 'cpu', array.size):
      self.write(part)
    self._parts.append(b'tQ')
    for part in (0, array.shape, dense(array.shape), False):
      self.write(part)
    self._name('collections', 'OrderedDict')
    self._parts.append(b')RtR')
