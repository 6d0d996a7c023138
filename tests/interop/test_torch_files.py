"""Files of PyTorch are read as data, and nothing in them is ever run."""

import contextlib
import importlib
import io
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from txl_jax.errors import InputError
from txl_jax.interop.torch_files import MAGIC, load_torch
from txl_jax.interop.torch_writing import save_torch
from txl_jax.interop.unpickler import stand_in


class Calls:
  """Unpickled freely, it would call a function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def _write(path: pathlib.Path, content: bytes, form: str) -> pathlib.Path:
  if form == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('model/data.pkl', content)
  elif form == 'legacy':
    begin = [pickle.dumps(x, 2) for x in (MAGIC, 1001, {})]
    path.write_bytes(b''.join([*begin, content, pickle.dumps([], 2)]))
  else:
    path.write_bytes(content)
  return path


ATTACKS = {
  'system': lambda m: pickle.dumps(Calls(os.system, f'touch {m}'), 2),
  'open': lambda m: pickle.dumps(Calls(open, str(m), 'w'), 4),
  'eval': lambda m: pickle.dumps(Calls(eval, f'open({str(m)!r}, "w")')),
  'import': lambda m: pickle.dumps(Calls(importlib.import_module, 'this'), 2),
  'getattr': lambda m: b'\x80\x02cbuiltins\ngetattr\n.',
  'attribute': lambda m: b'\x80\x04\x8c\x02os\x8c\x06system\x93.',
  'torch': lambda m: b'\x80\x02ctorch.hub\nload\n.',
  'class': lambda m: b'(ios\nsystem\n.',
  'extension': lambda m: b'\x80\x02\x82\x01.',
}


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle'])
@pytest.mark.parametrize('attack', ATTACKS)
def test_attacks_are_refused_and_leave_nothing(tmp_path, attack, form):
  marker = tmp_path / 'marker'
  path = _write(tmp_path / 'model.pt', ATTACKS[attack](marker), form)
  with pytest.raises(InputError) as error:
    load_torch(path)
  assert str(path) in str(error.value)
  assert os.listdir(tmp_path) == ['model.pt']
  assert 'this' not in sys.modules


def test_the_name_that_is_refused_is_told(tmp_path):
  path = _write(tmp_path / 'model.pt', ATTACKS['system'](tmp_path), 'zip')
  with pytest.raises(InputError, match=r'asks for posix.system, which no'):
    load_torch(path)


def test_one_file_cannot_change_the_next(tmp_path):
  """Setting attributes of a class, as a pickle can, ends with the file."""
  changes = (
    b'ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b.',
    b'cargparse\nNamespace\nN}X\x0c\x00\x00\x00__setstate__K\x01s\x86b.',
  )
  for content in changes:
    with contextlib.suppress(InputError):
      load_torch(_write(tmp_path / 'first.pt', content, 'pickle'))
  value = {'a': stand_in('argparse', 'Namespace')()}
  save_torch(tmp_path / 'second.pt', value)
  loaded = load_torch(tmp_path / 'second.pt')
  assert loaded.items() and loaded['a'].state == {}


def _saved(folder: pathlib.Path) -> tuple[pathlib.Path, dict]:
  rng = np.random.default_rng(0)
  shared = rng.normal(size=(3, 4)).astype(np.float32)
  value = {
    'tied': [shared, shared],
    'half': rng.normal(size=(2, 2)).astype(np.float16),
    'brain': rng.normal(size=5).astype(ml_dtypes.bfloat16),
    'none': np.zeros((0, 3), np.float32),
    'scalar': np.array(2.5),
    'plain': (1, -(2**40), True, None, 0.1, 'né', [{}]),
  }
  save_torch(folder / 'model.pt', value)
  return folder / 'model.pt', value


def test_what_is_written_is_read(tmp_path):
  path, value = _saved(tmp_path)
  loaded = load_torch(path)
  assert loaded['plain'] == value['plain']
  assert loaded['tied'][0].storage is loaded['tied'][1].storage
  for name in ('half', 'brain', 'none', 'scalar'):
    array = np.asarray(loaded[name])
    assert array.dtype == value[name].dtype
    np.testing.assert_array_equal(array, value[name])
  np.testing.assert_array_equal(loaded['tied'][1], value['tied'][1])


def test_no_truncated_file_is_taken_for_a_whole_one(tmp_path):
  path, _ = _saved(tmp_path)
  content = path.read_bytes()
  for length in range(0, len(content), 97):
    path.write_bytes(content[:length])
    with pytest.raises(InputError, match='model.pt'):
      load_torch(path)


def _rebuilt(key='0', size=4, shape=(2, 2), strides=(2, 1), offset=0) -> bytes:
  """A pickle of one tensor."""
  placed = io.BytesIO()
  writer = pickle._Pickler(placed, 2)
  writer.save('storage')
  middle = placed.getvalue() + b'ctorch\nFloatStorage\n'
  rest = io.BytesIO()
  writer = pickle._Pickler(rest, 2)
  for part in (key, 'cpu', size):
    writer.save(part)
  more = io.BytesIO()
  writer = pickle._Pickler(more, 2)
  for part in (offset, shape, strides, False, None):
    writer.save(part)
  name = b'ctorch._utils\n_rebuild_tensor_v2\n'
  return (
    b'\x80\x02'
    + name
    + b'(('
    + middle
    + rest.getvalue()
    + b'tQ'
    + more.getvalue()
    + b'tR'
  )


def _archive(path: pathlib.Path, content: bytes, **records: bytes):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('model/data.pkl', content + b'.')
    archive.writestr('model/data/0', bytes(16))
    for name, record in records.items():
      archive.writestr(name, record)
  return path


def test_the_tensor_of_these_tests_is_one(tmp_path):
  loaded = load_torch(_archive(tmp_path / 'model.pt', _rebuilt()))
  np.testing.assert_array_equal(loaded, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
  ('content', 'records', 'message'),
  [
    (_rebuilt(), {'../../evil': b'1'}, 'climbs out of the archive'),
    (_rebuilt(), {'/tmp/evil': b'1'}, 'climbs out of the archive'),
    (_rebuilt(key='../../0'), {}, 'lacks the record'),
    (_rebuilt(size=10**12), {}, 'has 16 bytes, expected 4000000000000'),
    (_rebuilt(shape=(10**6, 10**6), strides=(0, 0)), {}, 'does not fit'),
    (_rebuilt(offset=2), {}, 'does not fit'),
    (_rebuilt(offset=-1), {}, 'does not fit'),
    (_rebuilt(strides=(-2, 1)), {}, 'does not fit'),
    (_rebuilt() + b'}X\x05\x00\x00\x00shapeK\x01sb', {}, 'must not change'),
    (b'\x80\x02N', {'byteorder': b''}, None),
    (b'\x80\x02N', {'model/byteorder': b'big'}, 'little-endian'),
    (b'\x80\x02N', {'other/data.pkl': b'N.'}, 'not one of torch.save'),
  ],
)
def test_archives_that_lie_are_refused(tmp_path, content, records, message):
  path = _archive(tmp_path / 'model.pt', content, **records)
  if message is None:
    assert load_torch(path) is None
    return
  with pytest.raises(InputError, match=message):
    load_torch(path)
  assert os.listdir(tmp_path) == ['model.pt']


def test_a_zip_bomb_is_refused_unopened(tmp_path):
  path = tmp_path / 'model.pt'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('model/data.pkl', _rebuilt(size=2**24) + b'.')
    archive.writestr('model/data/0', bytes(2**26))
  assert path.stat().st_size < 2**17
  with pytest.raises(InputError, match='is compressed'):
    load_torch(path)


def test_a_record_that_claims_more_than_the_file_is_refused(tmp_path):
  path = _archive(tmp_path / 'model.pt', _rebuilt(size=2**28))
  content = bytearray(path.read_bytes())
  entry = content.index(b'PK\x01\x02', content.index(b'PK\x01\x02') + 1)
  content[entry + 20 : entry + 28] = struct.pack('<II', 2**30, 2**30)
  path.write_bytes(content)
  with pytest.raises(InputError, match='data/0.* is larger than the file'):
    load_torch(path)


def test_a_memo_of_any_number_takes_no_memory(tmp_path):
  content = b'\x80\x02Nr\xff\xff\xff\x7f.'
  assert load_torch(_write(tmp_path / 'a.pt', content, 'pickle')) is None
