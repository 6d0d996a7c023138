"""Any text that TensorFlow Datasets knows by name.

Importing this module imports tensorflow_datasets.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from txl_jax.data.downloads import Say
from txl_jax.data.splits import SPLITS
from txl_jax.errors import InputError


def read_named(
  name: str, *, text_field: str, data_dir: str, say: Say
) -> dict[str, list[bytes]]:
  """Reads a data set, after preparing it if that has not been done.

  Args:
    name: as `tfds.builder` takes it, such as `tiny_shakespeare` or
      `c4/realnewslike:3.1.0`.
    text_field: the feature that holds the text; each example is a document.
    data_dir: where data sets are kept.
    say: receives lines of progress.

  Returns:
    Split -> its documents, none empty.

  Raises:
    InputError: if there is no such data set or feature, or it cannot be had.
  """
  builder = _builder(name, data_dir)
  _check_feature(builder, name, text_field)
  say(f'Reading {name} from {builder.data_path}')
  try:
    if not builder.is_prepared():
      builder.download_and_prepare(file_format='array_record')
    return {
      split: [text for text in _texts(builder, split, text_field) if text]
      for split in builder.info.splits
    }
  # What fails depends on the data set: the network, a package, TensorFlow.
  except Exception as error:
    raise InputError(
      f'config.data.tfds_name: {name} cannot be prepared ({_reason(error)})'
    ) from error


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder(name, data_dir=data_dir)
  except (ImportError, OSError, ValueError, AssertionError) as error:
    raise InputError(
      'config.data.tfds_name must be a data set of TensorFlow Datasets, found '
      f'{name!r} ({_reason(error)})'
    ) from error


def _check_feature(
  builder: tfds.core.DatasetBuilder, name: str, text_field: str
) -> None:
  features = builder.info.features
  known = [
    key
    for key in features
    if isinstance(features[key], tfds.features.Text)
    or features[key].np_dtype is object
  ]
  if text_field not in known:
    found = ', '.join(known) or 'none'
    raise InputError(
      f'config.data.text_field is {text_field!r}, but the features of {name} '
      f'that are text are: {found}'
    )


def _texts(
  builder: tfds.core.DatasetBuilder, split: str, text_field: str
) -> Iterator[bytes]:
  source = builder.as_data_source(split)
  for index in range(len(source)):
    text = source[index][text_field]
    yield text.encode() if isinstance(text, str) else bytes(text)


def _reason(error: Exception) -> str:
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def official_splits(
  parts: dict[str, list[bytes]],
) -> dict[str, list[bytes]] | None:
  """The splits if train, validation and test are all there and have text."""
  if all(parts.get(split) for split in SPLITS):
    return {split: parts[split] for split in SPLITS}
  return None
