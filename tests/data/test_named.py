"""Data sets that TensorFlow Datasets knows by name."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from txl_jax.config import DataConfig
from txl_jax.data.corpora import SPLITS, load_corpus
from txl_jax.errors import InputError

SENTENCES = [f'This is sentence {i}.\n' for i in range(60)]


class TwoSplits(tfds.core.GeneratorBasedBuilder):
  """Sentences, and beside them a number."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None
  NAMES = ('train', 'test')

  def _info(self):
    features = {'sentence': tfds.features.Text(), 'number': np.int64}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name) for name in self.NAMES}

  def _generate_examples(self, name):
    first = self.NAMES.index(name)
    for i, text in enumerate(SENTENCES[first :: len(self.NAMES)]):
      yield i, {'sentence': text, 'number': i}


class ThreeSplits(TwoSplits):
  """The same in three parts."""

  VERSION = tfds.core.Version('1.0.0')
  NAMES = ('train', 'validation', 'test')


def _load(tmp_path, name='two_splits', **changes):
  fields = dict(tfds_name=name, text_field='sentence', **changes)
  config = DataConfig(cache_dir=str(tmp_path), **fields)
  return load_corpus(config, lambda line: None)


def _documents(corpus, split):
  ids = np.asarray(corpus.tokens[split])
  parts = np.split(ids, np.flatnonzero(ids == corpus.vocabulary.boundary))
  return [corpus.vocabulary.decode(part) for part in parts if len(part)]


@pytest.mark.parametrize('tokenizer', ['bytes', 'subwords'])
def test_splits_of_the_data_set_are_kept(tmp_path, tokenizer):
  options = dict(tokenizer=tokenizer, max_vocabulary=260)
  corpus = _load(tmp_path, 'three_splits', **options)
  assert corpus.vocabulary.size == (257 if tokenizer == 'bytes' else 260)
  assert corpus.name == 'three_splits'
  for i, split in enumerate(SPLITS):
    found = ''.join(_documents(corpus, split))
    assert found == ''.join(SENTENCES[i::3])
    assert len(_documents(corpus, split)) == 20


def test_others_are_cut_like_a_text_of_ones_own(tmp_path):
  corpus = _load(tmp_path, validation_fraction=0.2, test_fraction=0.1)
  sizes = [len(_documents(corpus, split)) for split in SPLITS]
  assert sizes == [42, 12, 6]
  order = SENTENCES[::2] + SENTENCES[1::2]
  found = [text for split in SPLITS for text in _documents(corpus, split)]
  assert found == order


@pytest.mark.parametrize(
  ('name', 'field', 'message'),
  [
    ('no_such_set', 'text', 'tfds_name must be .* found .no_such_set.'),
    ('two_splits', 'number', 'text_field is .number.* are: sentence'),
    ('two_splits', 'text', 'text_field is .text.* are: sentence'),
  ],
)
def test_what_is_not_there(tmp_path, name, field, message):
  config = DataConfig(tfds_name=name, text_field=field, cache_dir=str(tmp_path))
  with pytest.raises(InputError, match=message):
    load_corpus(config, lambda line: None)


def test_only_one_source(tmp_path):
  with pytest.raises(InputError, match='config.data.path must be'):
    DataConfig(path='a.txt', tfds_name='two_splits')
  with pytest.raises(InputError, match='config.data.tfds_name must be'):
    DataConfig(corpus='ptb', tfds_name='two_splits')
