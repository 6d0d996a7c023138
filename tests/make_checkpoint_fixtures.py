"""Writes tests/fixtures/checkpoints: models as other implementations save them.

The tests read the files, so only a change of the cases needs this script. It
runs in the environment of make_fixtures.py, from the root of the repository:

  /tmp/oracle/bin/python tests/make_checkpoint_fixtures.py OFFICIAL NVIDIA

OFFICIAL is the `pytorch` folder of kimiyoung/transformer-xl, NVIDIA that of
NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/Transformer-XL.

Each folder has a small model with random weights, in the files that the
implementation itself writes, and `expected.npz`: tokens int32 [S * T + 1, B] of
four segments, and the losses float32 [S, B, T], natural log, in token order,
with the memory carried from segment to segment.
"""

import argparse
import collections
import contextlib
import importlib
import pathlib
import pickle
import shutil
import sys
import types
from unittest import mock

import numpy as np
import torch
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

FOLDER = pathlib.Path(__file__).parent / 'fixtures' / 'checkpoints'
SEGMENTS, LENGTH, ROWS = 4, 5, 2
SIZES = dict(n_layer=2, n_head=2, d_model=8, d_head=4, d_inner=12, mem_len=7)
PLAIN = dict(vocab_size=30, cutoffs=[], div_val=1, d_embed=8)
CLUSTERS = dict(vocab_size=40, cutoffs=[10, 20], d_embed=8)
LATER = dict(same_length=True, clamp_len=4)
NEVER = dict(same_length=False, clamp_len=-1)
HUGGING_FACE = {
  'div_1': {**CLUSTERS, **NEVER, 'div_val': 1},
  'div_1_projected': {**CLUSTERS, **LATER, 'div_val': 1, 'd_embed': 6},
  'div_2': {**CLUSTERS, **LATER, 'div_val': 2},
  'div_2_untied': {
    **CLUSTERS,
    **NEVER,
    'div_val': 2,
    'tie_word_embeddings': False,
    'proj_share_all_but_first': False,
  },
  'div_4': {**CLUSTERS, **LATER, 'div_val': 4, 'd_embed': 16},
  'pre_norm': {**PLAIN, **LATER, 'pre_lnorm': True, 'untie_r': False},
}
SAFE = ['div_2']  # whose arrays are in a safetensors file
OFFICIAL = dict(
  SIZES,
  n_token=40,
  dropout=0.1,
  dropatt=0.2,
  d_embed=8,
  div_val=2,
  cutoffs=[10, 20],
  tie_projs=[False, True, True],
  tgt_len=LENGTH,
  ext_len=0,
  same_length=True,
  clamp_len=4,
)


def main(official: pathlib.Path, nvidia: pathlib.Path) -> None:
  shutil.rmtree(FOLDER, ignore_errors=True)
  for seed, (name, changes) in enumerate(HUGGING_FACE.items()):
    folder = FOLDER / f'hugging_face_{name}'
    config = TransfoXLConfig(**SIZES, **changes)
    model = randomize(TransfoXLLMHeadModel(config), seed)
    model.save_pretrained(folder, safe_serialization=name in SAFE)
    (folder / 'generation_config.json').unlink()
    expect(folder, config.vocab_size, seed, score_hugging_face(model))
  with code(official, 'utils'):
    write_official()
  with code(nvidia):
    write_nvidia()


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  """Every parameter random, none small enough to hide."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      mean = float(name.endswith('layer_norm.weight'))
      array = rng.normal(mean, 0.3, tuple(parameter.shape))
      parameter.copy_(torch.from_numpy(array))
  return model.eval()


@torch.no_grad()
def expect(folder: pathlib.Path, n_tokens: int, seed: int, score) -> None:
  """Runs `score(inputs_TB, targets_TB, memory)` over the segments."""
  rng = np.random.default_rng(100 + seed)
  tokens_LB = rng.integers(n_tokens, size=(SEGMENTS * LENGTH + 1, ROWS))
  losses, memory = [], None
  for s in range(SEGMENTS):
    window = torch.from_numpy(tokens_LB[s * LENGTH : (s + 1) * LENGTH + 1])
    nll_TB, memory = score(window[:-1], window[1:], memory)
    losses.append(nll_TB.T.numpy())
  np.savez(
    folder / 'expected.npz',
    tokens=tokens_LB.astype(np.int32),
    losses=np.stack(losses).astype(np.float32),
  )


def score_hugging_face(model: torch.nn.Module):
  """In float64; given labels, it would skip a target per segment."""
  model.double()

  def score(inputs_TB, targets_TB, memory):
    # It masks scores in float32, where float64's lowest number overflows.
    with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
      output = model(inputs_TB.T.contiguous(), mems=memory)
    logp_TBV = output.prediction_scores.transpose(0, 1)
    return -logp_TBV.gather(-1, targets_TB[..., None])[..., 0], output.mems

  return score


@contextlib.contextmanager
def code(folder: pathlib.Path, *inside: str):
  """The modules of a repository, and none of another one's."""
  before, path = set(sys.modules), list(sys.path)
  sys.path[:0] = [str(folder / part) for part in ('', *inside)]
  # What the two import and this machine may lack, and the code does not need.
  # The official code parses the version of CUDA, and masks with bytes.
  stubs = {name: mock.MagicMock() for name in ('pynvml', 'dllogger')}
  with (
    mock.patch.dict(sys.modules, stubs),
    mock.patch.object(torch.version, 'cuda', '12.0'),
    mock.patch.object(torch.Tensor, 'byte', torch.Tensor.bool),
  ):
    yield
  sys.path[:] = path
  for name in set(sys.modules) - before:
    if str(folder) in str(getattr(sys.modules[name], '__file__', '')):
      del sys.modules[name]


def write_official() -> None:
  """`model.pt` as two versions of PyTorch write it, and the vocabulary."""
  module = importlib.import_module('mem_transformer')
  model = randomize(module.MemTransformerLM(**OFFICIAL), 0)
  folder = FOLDER / 'official'
  folder.mkdir()
  # Without the code's own text, which old versions put into the file.
  hide = 'torch.serialization.get_source_lines_and_file'
  with mock.patch(hide, side_effect=OSError):
    torch.save(model, folder / 'model.pt', _use_new_zipfile_serialization=False)
  torch.save(model, folder / 'zipped.pt')
  torch.save(model.state_dict(), folder / 'state_dict.pt')
  corpus = corpus_of(importlib.import_module('utils.vocabulary').Vocab)
  corpus.train = torch.arange(3)
  torch.save(corpus, folder / 'cache.pt')
  corpus.train = np.arange(3)
  (folder / 'cache.pkl').write_bytes(pickle.dumps(corpus, protocol=2))
  model.crit.keep_order = True
  model.double()

  def score(inputs_TB, targets_TB, memory):
    nll_TB, *memory = model(inputs_TB, targets_TB, *(memory or ()))
    return nll_TB, memory

  expect(folder, OFFICIAL['n_token'], 50, score)


def corpus_of(vocab_class: type):
  """An official corpus: the vocabulary and arrays of ids."""
  vocab = vocab_class(special=['<eos>'], lower_case=False)
  words = (f'w{i}' for i in range(OFFICIAL['n_token'] - 1))
  vocab.counter = collections.Counter({w: 100 - i for i, w in enumerate(words)})
  vocab.build_vocab()
  module = types.ModuleType('data_utils')
  module.Corpus = type('Corpus', (), {'__module__': 'data_utils'})
  sys.modules['data_utils'] = module
  corpus = module.Corpus()
  corpus.dataset, corpus.vocab = 'wt103', vocab
  return corpus


def write_nvidia() -> None:
  """`checkpoint_best.pt` of a run on two devices with two parts a batch."""
  options = {**OFFICIAL, 'dtype': None, 'tie_weight': True, 'attn_type': 0}
  module = importlib.import_module('mem_transformer')
  model = randomize(module.MemTransformerLM(**options), 1)
  vocab = importlib.import_module('utils.vocabulary').Vocab
  rng = np.random.default_rng(2)
  shape = (OFFICIAL['n_layer'], 3, 1, OFFICIAL['d_model'])
  memory = [
    [torch.from_numpy(rng.normal(size=shape)).float() for _ in range(2)]
    for _ in range(2)
  ]
  folder = FOLDER / 'nvidia'
  folder.mkdir()
  torch.save(
    {
      'args': argparse.Namespace(**options),
      'model_config': options,
      'model_state': model.state_dict(),
      'optimizer_state': torch.optim.Adam(model.parameters()).state_dict(),
      'rng_states': [torch.get_rng_state()],
      'memory': memory,
      'vocab': corpus_of(vocab).vocab,
      'train_step': 77,
    },
    folder / 'checkpoint_best.pt',
  )
  model.crit.keep_order = True
  model.double()
  expect(folder, OFFICIAL['n_token'], 60, lambda x, y, m: model(x, y, m))


if __name__ == '__main__':
  main(*map(pathlib.Path, sys.argv[1:]))
