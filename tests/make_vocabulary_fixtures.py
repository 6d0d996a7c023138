"""Regenerates fixtures/official_vocabulary.json from the paper's code.

Run with Python with PyTorch: `python tests/make_vocabulary_fixtures.py REPO`,
REPO being a checkout of kimiyoung/transformer-xl.
"""

import json
import pathlib
import random
import sys
import tempfile

FOLDER = pathlib.Path(__file__).parent / 'fixtures'
WORDS = (
  'the of a to in was on The it Cat cat Tree house Été étés naïve 1 2 N $ , . '
  "'s -- <unk> x y z w"
).split()


def texts(seed: int) -> dict[str, str]:
  """Lines of words with ties, blank lines, odd white space and upper case."""
  choose, result = random.Random(seed), {}
  for split, n_lines in (('train', 40), ('valid', 8), ('test', 8)):
    lines = []
    for _ in range(n_lines):
      n_words = choose.choice([0, 1, 3, 8])
      known = WORDS if split == 'train' else WORDS[: choose.randint(5, 20)]
      lines.append(' '.join(choose.choice(known) for _ in range(n_words)))
    lines[1] = f'  {lines[1]} \t{WORDS[3]}\u3000{WORDS[4]} '
    result[split] = '\n'.join(lines) + ('\n' if split != 'test' else ' a')
  return result


def symbols(seed: int) -> dict[str, bytes]:
  """Bytes of all kinds, line ends among them."""
  choose = random.Random(seed)
  alphabet = b'aaabcd\n\n \xc3\xa9\xff<&'
  return {
    split: bytes(choose.choice(alphabet) for _ in range(n))
    for split, n in (('train', 300), ('valid', 60), ('test', 60))
  }


def official(repository: str, dataset: str, splits: dict) -> dict:
  """Symbols and ids of the official Corpus class."""
  sys.path.insert(0, f'{repository}/pytorch')
  from data_utils import Corpus

  options = {
    'wt103': dict(special=['<eos>'], lower_case=False),
    'wt2': dict(special=['<eos>'], lower_case=False),
    'ptb': dict(special=['<eos>'], lower_case=True),
    'enwik8': {},
    'text8': {},
  }[dataset]
  with tempfile.TemporaryDirectory() as folder:
    for split, text in splits.items():
      if isinstance(text, bytes):
        # What prep_enwik8.py writes: numbers, but line ends as they are.
        text = ' '.join('\n' if c == 10 else str(c) for c in text)
      path = pathlib.Path(folder) / f'{split}.txt'
      path.write_text(text, encoding='utf-8')
    corpus = Corpus(folder, dataset, **options)
  ids = {split: getattr(corpus, split).tolist() for split in splits}
  return {'symbols': corpus.vocab.idx2sym, 'ids': ids}


def official_lm1b(repository: str, splits: dict[str, str]) -> dict:
  """One Billion Word: a vocabulary from a file, a mark on both sides."""
  sys.path.insert(0, f'{repository}/pytorch')
  from utils.vocabulary import Vocab

  words = ['<S>', 'the', '<UNK>', 'of', 'Cat', 'cat', ',', '.', 'was']
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'vocabulary.txt'
    file.write_text(''.join(f'{w} {i}\n' for i, w in enumerate(words)))
    vocab = Vocab(lower_case=False, vocab_file=str(file))
    vocab.build_vocab()
    ids = {}
    for split, text in splits.items():
      path = pathlib.Path(folder) / f'{split}.txt'
      path.write_text(text, encoding='utf-8')
      encoded = vocab.encode_file(str(path), ordered=True, add_double_eos=True)
      ids[split] = encoded.tolist()
  return {'symbols': vocab.idx2sym, 'ids': ids}


def main() -> None:
  """Writes the fixtures."""
  repository, cases = sys.argv[1], {}
  for dataset in ('wt103', 'wt2', 'ptb'):
    splits = texts(len(dataset))
    result = official(repository, dataset, splits)
    cases[dataset] = {'texts': splits, **result}
  for dataset in ('enwik8', 'text8'):
    splits = symbols(len(dataset))
    result = official(repository, dataset, splits)
    readable = {split: list(text) for split, text in splits.items()}
    cases[dataset] = {'texts': readable, **result}
  splits = texts(9)
  cases['lm1b'] = {'texts': splits, **official_lm1b(repository, splits)}
  path = FOLDER / 'official_vocabulary.json'
  path.write_text(json.dumps(cases, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  main()
