"""Files of the other implementations give their numbers here, and go back.

The files in tests/fixtures/checkpoints were written by the implementations
themselves (make_checkpoint_fixtures.py), which also computed the losses.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.interop.checkpoints import read_checkpoint, write_checkpoint
from txl_jax.interop.imported import Imported
from txl_jax.interop.safe_files import load_safe
from txl_jax.interop.torch_files import Tensor, load_torch

FOLDER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'checkpoints'
CASES = sorted(path.name for path in FOLDER.iterdir())
# What a bare state dict does not tell.
UNTOLD = dict(memory_length=7, attention_span=7, clamp_length=4, pre_norm=False)


def _losses(imported, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Ours and theirs [S, B, T], over four segments with memory."""
  expected = np.load(folder / 'expected.npz')
  tokens_BL, losses_SBT = expected['tokens'].T, expected['losses']
  S, B, T = losses_SBT.shape

  def segments(tokens_BL: np.ndarray) -> np.ndarray:
    return tokens_BL.reshape(B, S, T).swapaxes(0, 1)

  nll_SBT, _ = txl_jax.score_segments(
    imported.config,
    imported.params,
    segments(tokens_BL[:, :-1]),
    segments(tokens_BL[:, 1:]),
    txl_jax.init_memory(imported.config, B),
  )
  return np.asarray(nll_SBT), losses_SBT


@pytest.mark.parametrize('name', CASES)
def test_losses_are_equal_over_four_segments(name):
  ours_SBT, theirs_SBT = _losses(read_checkpoint(FOLDER / name), FOLDER / name)
  np.testing.assert_allclose(ours_SBT, theirs_SBT, rtol=0, atol=2e-5)
  # A uniform guess would be wrong by nats.
  assert theirs_SBT.std() > 0.3


def _same(first, second) -> None:
  assert first.config == second.config
  assert jax.tree.structure(first.params) == jax.tree.structure(second.params)
  for a, b in zip(*map(jax.tree.leaves, (first.params, second.params))):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ('name', 'given'), [('zipped.pt', {}), ('state_dict.pt', UNTOLD)]
)
def test_the_official_files_hold_one_model(name, given):
  whole = read_checkpoint(FOLDER / 'official')
  other = read_checkpoint(FOLDER / 'official' / name, given)
  if given:
    dropout = dict(dropout=0.1, attention_dropout=0.2)
    config = dataclasses.replace(other.config, **dropout)
    other = dataclasses.replace(other, config=config)
  _same(whole, other)


def test_what_the_state_dict_does_not_tell_is_asked_for():
  with pytest.raises(InputError) as error:
    read_checkpoint(FOLDER / 'official' / 'state_dict.pt', {'pre_norm': False})
  asked = ['memory_length', 'attention_span', 'clamp_length']
  text = ' '.join(f'--config.model.{name}=...' for name in asked)
  assert str(error.value).endswith(f'give {text}')


def _arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a checkpoint, by name."""
  if (folder / 'model.safetensors').is_file():
    return {n: np.asarray(a) for n, a in _safe(folder).items()}
  names = 'pytorch_model.bin', 'checkpoint_best.pt', 'state_dict.pt', 'model.pt'
  path = next(p for p in (folder / name for name in names) if p.is_file())
  loaded = load_torch(path)
  loaded = loaded.get('model_state', loaded)
  assert all(isinstance(tensor, Tensor) for tensor in loaded.values())
  return {name: np.asarray(tensor) for name, tensor in loaded.items()}


def _safe(folder: pathlib.Path) -> dict:
  return load_safe(folder / 'model.safetensors')


@pytest.mark.parametrize('name', CASES)
def test_round_trips_are_equal_tensor_by_tensor(tmp_path, name):
  """Theirs, our export, theirs."""
  first = read_checkpoint(FOLDER / name)
  write_checkpoint('export', tmp_path / 'ours', first)
  exported = read_checkpoint(tmp_path / 'ours')
  _same(first, exported)
  write_checkpoint(first.form, tmp_path / 'theirs', exported)
  again = read_checkpoint(tmp_path / 'theirs')
  _same(first, again)
  assert again.step == first.step
  assert (again.memory is None) == (first.memory is None)
  before, after = _arrays(FOLDER / name), _arrays(tmp_path / 'theirs')
  tied = before.keys() - after.keys()
  # What Hugging Face ties again when it loads is written once.
  assert after.keys() <= before.keys()
  assert all(n.startswith('crit.out_') for n in tied)
  assert not tied or first.form == 'hugging_face'
  for array_name, array in after.items():
    np.testing.assert_array_equal(before[array_name], array, array_name)


SMALL = dict(
  vocab_size=30,
  n_layers=2,
  n_heads=2,
  d_model=8,
  d_head=4,
  d_ff=12,
  memory_length=6,
)
ABSOLUTE = dict(memory_length=0, n_positions=5)


def _random(config: txl_jax.ModelConfig) -> dict:
  """Parameters, without compiling what draws them."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda: txl_jax.init_params(config, jax.random.key(0))
  )
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


@pytest.mark.parametrize('form', ['official', 'nvidia', 'hugging_face'])
@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(cutoffs=(10, 20), d_embed=6),
    dict(cutoffs=(10, 20), d_embed=6, tie_projections=(False, True, True)),
    dict(cutoffs=(5,), div_val=3, d_embed=9, tie_weights=False),
    dict(pre_norm=True, clamp_length=3, d_embed=4, tie_projections=(True,)),
    dict(position_encoding='shaw', n_positions=9, clamp_length=4),
    dict(position_encoding='sinusoid', **ABSOLUTE),
    dict(position_encoding='learned', **ABSOLUTE),
  ],
  ids=str,
)
def test_our_models_come_back_from_every_format(tmp_path, changes, form):
  """Ours, theirs, ours; with spans as long as the format's."""
  values = {**SMALL, **changes, 'attention_dropout': 0.2}
  if values['memory_length']:
    values['attention_span'] = 6 + (form == 'nvidia')
  if form == 'hugging_face':
    values |= {'memory_start': 'zeros', 'untie_biases': True}
    values |= {'layer_norm_epsilon': 1e-12}
  config = txl_jax.ModelConfig(**values)
  first = Imported(form, config, _random(config))
  if form != 'official' and 'position_encoding' in changes:
    with pytest.raises(InputError, match='position_encoding is'):
      write_checkpoint(form, tmp_path, first)
    return
  write_checkpoint(form, tmp_path, first)
  again = read_checkpoint(tmp_path)
  expected = dataclasses.replace(config, d_embed=config.embed_width)
  _same(dataclasses.replace(first, config=expected), again)


def test_golden_models_come_back(golden_dir, tmp_path):
  """Official, ours, official, for every model of the paper's own code."""
  for path in sorted(golden_dir.glob('*.npz')):
    stored = np.load(path)
    arrays = {
      name.removeprefix('param/'): stored[name].astype(np.float32)
      for name in stored.files
      if name.startswith('param/')
    }
    options = json.loads(str(stored['config']))
    config, params = txl_jax.from_official(arrays, options)
    folder, model = tmp_path / path.stem, Imported('', config, params)
    write_checkpoint('official', folder, model)
    written = _arrays(folder)
    assert written.keys() >= arrays.keys()
    for name, array in arrays.items():
      np.testing.assert_array_equal(written[name], array, name)
    _same(model, read_checkpoint(folder))
