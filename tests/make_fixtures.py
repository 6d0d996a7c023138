"""Writes tests/fixtures/*.npz, the losses of Hugging Face's Transformer-XL.

The tests read the files, so only a change of the cases needs this script. It
runs in an environment of its own, from the root of the repository:

  python -m venv /tmp/oracle
  /tmp/oracle/bin/pip install torch==2.13.0 transformers==4.35.2 'numpy<2'
  /tmp/oracle/bin/python tests/make_fixtures.py

Each file is one small model with random weights, run over consecutive segments
with memory carried, which Hugging Face starts with attended zeros:

  config: JSON of the official argument names.
  param/NAME: the state dict under the official names, float32.
  tokens: int32 [segments * tgt_len + 1, batch].
  losses: float32 [segments, batch, tgt_len], natural log, in token order;
    segment s reads tokens[s*T:(s+1)*T] and predicts tokens[s*T+1:(s+1)*T+1].

Official is the paper's PyTorch code, kimiyoung/transformer-xl.
"""

import json
import pathlib
from unittest import mock

import numpy as np
import torch
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

FOLDER = pathlib.Path(__file__).parent / 'fixtures'
COMMON = {
  'n_token': 50,
  'n_layer': 2,
  'n_head': 2,
  'd_model': 16,
  'd_head': 8,
  'd_inner': 32,
  'mem_len': 8,
  'tgt_len': 6,
  'batch': 3,
  'segments': 4,
  'd_embed': 16,
  'div_val': 1,
  'cutoffs': [],
  'tie_projs': [False],
  'same_length': False,
  'clamp_len': -1,
  'pre_lnorm': False,
  'tie_weight': True,
  'attn_type': 0,
  'ext_len': 0,
}
CASES = {
  'full_softmax': {},
  'adaptive': {
    'n_token': 120,
    'cutoffs': [20, 60],
    'div_val': 2,
    'tie_projs': [False, True, True],
  },
  'same_length_clamped': {'same_length': True, 'clamp_len': 5},
  'pre_norm': {'pre_lnorm': True},
}
# Arguments that Hugging Face calls the same.
SHARED = (
  'n_layer',
  'n_head',
  'd_model',
  'd_head',
  'd_inner',
  'mem_len',
  'd_embed',
  'div_val',
  'cutoffs',
  'same_length',
  'clamp_len',
  'pre_lnorm',
  'attn_type',
)


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  for seed, (name, changes) in enumerate(CASES.items()):
    options = {**COMMON, **changes}
    rng = np.random.default_rng(seed)
    model = build_model(options, rng)
    # Before `score` makes the model float64.
    arrays = official_arrays(model)
    n_tokens = options['segments'] * options['tgt_len'] + 1
    tokens_LB = rng.integers(
      options['n_token'], size=(n_tokens, options['batch'])
    )
    path = FOLDER / f'{name}.npz'
    np.savez_compressed(
      path,
      config=json.dumps(options),
      tokens=tokens_LB.astype(np.int32),
      losses=score(model, options, tokens_LB).astype(np.float32),
      **{f'param/{key}': array for key, array in arrays.items()},
    )
    print(f'{path}: {path.stat().st_size} bytes')


def build_model(options: dict, rng: np.random.Generator) -> torch.nn.Module:
  """The model with every parameter random, none small enough to hide."""
  config = TransfoXLConfig(
    vocab_size=options['n_token'],
    untie_r=False,
    tie_word_embeddings=options['tie_weight'],
    **{name: options[name] for name in SHARED},
  )
  # Hugging Face can say only "all but the first" in its own arguments.
  config.tie_projs = options['tie_projs']
  model = TransfoXLLMHeadModel(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = name.endswith('layer_norm.weight')
      mean, deviation = (1, 0.2) if is_scale else (0, 0.3)
      array = rng.normal(mean, deviation, tuple(parameter.shape))
      parameter.copy_(torch.from_numpy(array))
  return model


def official_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """The state dict under the official names."""
  result = {}
  for name, tensor in model.state_dict().items():
    name = name.removeprefix('transformer.')
    # Every layer lists the biases that all of them share.
    if name.endswith(('dec_attn.r_w_bias', 'dec_attn.r_r_bias')):
      continue
    # The official code counts the clusters' columns from the end.
    if name.startswith('crit.cluster_'):
      tensor = tensor.flip(0)
    result[name] = tensor.numpy().copy()
  return result


@torch.no_grad()
def score(
  model: torch.nn.Module, options: dict, tokens_LB: np.ndarray
) -> np.ndarray:
  """Negative log-likelihood [segments, batch, tgt_len], computed in float64."""
  model.double()
  T, losses, memory = options['tgt_len'], [], None
  for s in range(options['segments']):
    window_LB = tokens_LB[s * T : (s + 1) * T + 1]
    window_BL = torch.from_numpy(window_LB).T.contiguous()
    # Given labels, the model would shift them and skip a target per segment.
    # It masks scores in float32, where float64's lowest number overflows.
    with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
      output = model(window_BL[:, :-1], mems=memory)
    memory, logp_BTV = output.mems, output.prediction_scores
    total_BT = logp_BTV.exp().sum(-1)
    if not torch.allclose(total_BT, torch.ones_like(total_BT), atol=1e-9):
      raise RuntimeError('the probabilities do not sum to 1')
    logp_BT = logp_BTV.gather(-1, window_BL[:, 1:, None])[..., 0]
    losses.append(-logp_BT.numpy())
  return np.stack(losses)


if __name__ == '__main__':
  main()
