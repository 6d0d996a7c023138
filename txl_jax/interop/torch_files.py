"""Files that `torch.save` wrote, read without PyTorch.

Both formats: an archive (zip) of a pickle and one record for each storage, and
the older one, a row of pickles followed by the storages. Also plain pickles.
Tensors stay in the file until they are asked for.
"""

import dataclasses
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from txl_jax.errors import InputError
from txl_jax.interop.unpickler import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C
ZIP = b'PK\x03\x04'
LOCAL_HEADER = struct.Struct('<26xHH')
STORAGES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


class _Sealed:
  """What a pickle cannot change once it is made."""

  def __setstate__(self, state: Any) -> None:
    raise InputError('it changes what it must not change')


@dataclasses.dataclass
class Storage(_Sealed):
  """A run of numbers in a file.

  Attributes:
    path: the file.
    dtype: of the numbers.
    size: how many.
    offset: where they begin, in bytes; -1 while that is not known.
  """

  path: pathlib.Path
  dtype: np.dtype
  size: int
  offset: int = -1


@dataclasses.dataclass(frozen=True)
class Tensor(_Sealed):
  """An array in a file; `numpy.asarray` reads it.

  Attributes:
    storage: its numbers; tied tensors share one.
    offset: of its first number in the storage.
    shape: its shape.
    strides: in numbers.
  """

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def dtype(self) -> np.dtype:
    """Of its numbers."""
    return self.storage.dtype

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    storage, size = self.storage, math.prod(self.shape)
    begin = storage.offset + self.offset * storage.dtype.itemsize
    if self.strides == dense(self.shape):
      array = np.fromfile(storage.path, storage.dtype, size, offset=begin)
      array = array.reshape(self.shape)
    else:
      count = storage.size - self.offset
      run = np.fromfile(storage.path, storage.dtype, count, offset=begin)
      steps = [s * run.itemsize for s in self.strides]
      array = np.lib.stride_tricks.as_strided(run, self.shape, steps).copy()
    return array if dtype is None else array.astype(dtype, copy=False)


def load_torch(path: str | os.PathLike) -> Any:
  """What a file holds: plain Python objects, `Tensor`s and `StandIn`s.

  Args:
    path: a file of `torch.save`, or a pickle.

  Raises:
    InputError: if the file cannot be read, is damaged, or asks for anything
      but data; nothing of it has been run then.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as file:
      is_zip = file.read(4) == ZIP
      file.seek(0)
      return _load_zip(path, file) if is_zip else _load_pickles(path, file)
  except InputError as error:
    raise InputError(f'{path} is refused: {error}') from None
  # A damaged pickle can fail in any way.
  except Exception as error:
    problem = f'{type(error).__name__}: {error}'
    raise InputError(f'{path} cannot be read: {problem}') from error


def _load_zip(path: pathlib.Path, file: BinaryIO) -> Any:
  with zipfile.ZipFile(file) as archive:
    records = {info.filename: info for info in archive.infolist()}
    length = os.fstat(file.fileno()).st_size
    for info in records.values():
      _check_record(info, length)
    pickles = [name for name in records if name.endswith('/data.pkl')]
    if len(pickles) != 1 or pickles[0].count('/') != 1:
      raise InputError('it is a zip archive, but not one of torch.save')
    root = pickles[0].removesuffix('data.pkl')
    order = records.get(f'{root}byteorder')
    if order and archive.read(order) != b'little':
      raise InputError('its numbers are not in little-endian order')
    found: dict[str, Storage] = {}

    def locate(key: str, dtype: np.dtype, size: int) -> Storage:
      info = records.get(f'{root}data/{key}')
      if info is None:
        raise InputError(f'the archive lacks the record data/{key}')
      if info.file_size < size * dtype.itemsize:
        raise InputError(
          f'the record data/{key} has {info.file_size} bytes, expected '
          f'{size * dtype.itemsize}'
        )
      if key not in found:
        found[key] = Storage(path, dtype, size, _data_offset(file, info))
      return found[key]

    return _unpickler(io.BytesIO(archive.read(pickles[0])), locate).load()


def _check_record(info: zipfile.ZipInfo, length: int) -> None:
  """PyTorch never compresses, so nothing can be larger than the file."""
  if '..' in info.filename.split('/') or info.filename[:1] in ('/', '\\'):
    raise InputError(f'the record {info.filename!r} climbs out of the archive')
  packed = info.compress_type != zipfile.ZIP_STORED
  if packed or info.file_size != info.compress_size:
    raise InputError(
      f'the record {info.filename!r} is compressed, which those of torch.save '
      'are not'
    )
  if info.header_offset + info.file_size > length:
    raise InputError(f'the record {info.filename!r} is larger than the file')


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
  """Where the data of a record begin, after its local header."""
  before = file.tell()
  file.seek(info.header_offset)
  header = file.read(LOCAL_HEADER.size)
  file.seek(before)
  return (
    info.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))
  )


def _load_pickles(path: pathlib.Path, file: BinaryIO) -> Any:
  """The old format: magic number, version, system, object, keys, storages."""
  first = Unpickler(file).load()
  if first != MAGIC or isinstance(first, bool):
    return first
  for _ in range(2):
    Unpickler(file).load()
  found: dict[str, Storage] = {}

  def locate(key: str, dtype: np.dtype, size: int) -> Storage:
    return found.setdefault(key, Storage(path, dtype, size))

  result = _unpickler(file, locate).load()
  length = os.fstat(file.fileno()).st_size
  for key in Unpickler(file).load():
    storage = found[key]
    (size,) = struct.unpack('<q', file.read(8))
    storage.offset = file.tell()
    end = storage.offset + size * storage.dtype.itemsize
    if size != storage.size or end > length:
      raise InputError(f'the storage {key} is damaged or cut off')
    file.seek(end)
  if any(storage.offset < 0 for storage in found.values()):
    raise InputError('it lacks the numbers of a tensor')
  return result


def _unpickler(file: BinaryIO, locate: Callable[..., Storage]) -> Unpickler:
  """For pickles with tensors, whose storages `locate` finds."""

  def persistent(pid: tuple) -> Any:
    if pid[0] == 'module':  # a class, with its source code
      return pid[1]
    kind, storage_type, key, _, size = pid[:5]
    if kind != 'storage' or storage_type not in STORAGES:
      raise InputError(f'it refers to data of an unknown kind, {kind!r}')
    if pid[5:] not in ((), (None,)) or size < 0:
      raise InputError(f'the storage {key} is a part of another one')
    return locate(str(key), np.dtype(STORAGES[storage_type]), size)

  return Unpickler(file, _torch_names(), persistent)


def _torch_names() -> dict[tuple[str, str], Any]:
  names: dict[tuple[str, str], Any] = {('torch', n): n for n in STORAGES}

  def tensor(storage, offset, shape, strides, *_) -> Tensor:
    return _tensor(storage, offset, tuple(shape), tuple(strides))

  def parameter(data, *_) -> Any:
    return data

  for name in ('_rebuild_tensor', '_rebuild_tensor_v2'):
    names['torch._utils', name] = tensor
  names['torch._utils', '_rebuild_parameter'] = parameter
  names['torch.nn.parameter', 'Parameter'] = parameter
  return names


def _tensor(
  storage: Storage, offset: int, shape: tuple, strides: tuple
) -> Tensor:
  numbers = (offset, *shape, *strides)
  if not isinstance(storage, Storage) or len(shape) != len(strides):
    raise pickle.UnpicklingError('a tensor without storage')
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
  wrong = any(type(n) is not int or n < 0 for n in numbers)
  # No more numbers than there are, so that none can stand for many.
  n_numbers = 0 if wrong else math.prod(shape)
  if wrong or n_numbers > storage.size or n_numbers and last >= storage.size:
    raise InputError(
      f'a tensor of shape {shape} does not fit into its storage of '
      f'{storage.size} numbers'
    )
  return Tensor(storage, offset, shape, strides)


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides of an array without gaps."""
  return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
