"""The definition of the effective context, and the windows it is found in."""

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.errors import InputError
from txl_jax.evaluation.effective_context import (
  effective_context,
  sampled_positions,
)
from txl_jax.evaluation.windows import window_losses, window_model
from txl_jax.parallel.mesh import make_mesh

CONTEXTS = list(range(100, 1001, 100))
SIZES = dict(
  vocab_size=30, n_layers=2, n_heads=2, d_model=16, d_head=8, d_ff=16,
  memory_length=4, init_std=0.3,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 30, 80).astype(np.uint16)


def _group(*reaches: int, slope: float = 0.03, seed: int = 0) -> np.ndarray:
  """Models that gain by each further context, up to one of their own."""
  base_P = np.random.default_rng(seed).uniform(3, 5, 400)
  reach_I1 = np.minimum(np.array(reaches)[:, None], CONTEXTS)
  return base_P - slope * reach_I1[..., None] / 100


@pytest.mark.parametrize('share', [0.1, 0.5, 1.0])
def test_known_contexts_are_found(share):
  found = effective_context(_group(700, 300, 100, 1000), CONTEXTS, share)
  assert found.lengths_I.tolist() == [700, 300, 100, 1000]
  assert found.bounded_I.tolist() == [True, True, True, False]
  # A gain of 0.03 nats is one of 1 - exp(-0.03), to perplexity.
  np.testing.assert_allclose(found.gains_IC[0, :6], 1 - np.exp(-0.03))
  np.testing.assert_allclose(found.gains_IC[0, 6:], 0, atol=1e-12)


@pytest.mark.parametrize(('slope', 'length'), [(0.0100, 100), (0.0102, 500)])
def test_a_gain_of_one_percent_counts(slope, length):
  found = effective_context(_group(500, slope=slope), CONTEXTS, 1.0)
  assert found.lengths_I.tolist() == [length]


def test_a_worse_model_does_not_gain_by_being_worse():
  # Alone it seems to use 500; but with 500 it is what the other is with 100.
  worse = _group(500) + 0.12
  better = _group(100)
  assert effective_context(worse, CONTEXTS, 1.0).lengths_I.tolist() == [500]
  both = np.concatenate([better, worse])
  assert effective_context(both, CONTEXTS, 1.0).lengths_I.tolist() == [100, 100]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('share', [0.1, 0.37, 1.0])
def test_it_is_the_definition(seed, share):
  losses_ICP = np.random.default_rng(seed).uniform(0, 3, (3, 4, 23))
  losses_ICP -= 0.1 * np.arange(4)[:, None]
  found = effective_context(losses_ICP, [5, 10, 15, 20], share)
  for i in range(3):
    length, growing = 5, True
    for c in range(3):
      best = [min(losses_ICP[:, c, t]) for t in range(23)]
      hardest = sorted(range(23), key=lambda t: -best[t])
      hardest = hardest[: round(share * 23)]
      f_here = np.mean([best[t] for t in hardest])
      f_longer = np.mean(
        [min(best[t], losses_ICP[i, c + 1, t]) for t in hardest]
      )
      gain = (np.exp(f_here) - np.exp(f_longer)) / np.exp(f_here)
      assert found.gains_IC[i, c] == pytest.approx(gain, rel=1e-9, abs=1e-12)
      growing &= gain >= 0.01
      length += 5 * growing
    assert found.lengths_I[i] == length


def test_positions_have_the_longest_context():
  found = sampled_positions(1000, 200, 50)
  assert (found[0], found[-1], len(found)) == (200, 999, 50)
  assert set(np.diff(found)) <= {16, 17}
  assert sampled_positions(10, 8, 50).tolist() == [8, 9]


def _params(model: txl_jax.ModelConfig) -> dict:
  return txl_jax.init_params(model, jax.random.key(0))


def _window_losses(model, tokens, positions, context, n_devices=1, **options):
  options = {'boundary': None, 'batch_size': 4, **options}
  mesh = make_mesh(devices=jax.devices()[:n_devices])
  return window_losses(
    *(window_model(model), _params(model), tokens, np.array(positions)),
    context,
    mesh=mesh,
    **options,
  )


def test_a_window_shows_exactly_so_many_tokens():
  model, positions = txl_jax.ModelConfig(**SIZES), [6, 20, 41, 60, 79]
  whole = _window_losses(model, TOKENS, positions, 6)
  model_0 = window_model(model)
  for position, loss in zip(positions, whole):
    window_1T = TOKENS[None, position - 6 : position + 1].astype(np.int32)
    nll_1T, _ = txl_jax.score(
      *(model_0, _params(model), window_1T[:, :-1], window_1T[:, 1:]),
      txl_jax.init_memory(model_0, 1),
    )
    assert loss == pytest.approx(float(nll_1T[0, -1]), rel=1e-5)
  other = TOKENS.copy()
  other[[13, 14]] = (other[[13, 14]] + 1) % 30
  # Token 20 sees 14 to 19, so token 13 does not matter to it, but token 14.
  changed = _window_losses(model, other, positions, 6)
  assert changed[1] != whole[1]
  other[14] = TOKENS[14]
  np.testing.assert_array_equal(
    _window_losses(model, other, positions, 6), whole
  )


def test_windows_end_at_documents_and_divide_among_devices():
  model = txl_jax.ModelConfig(**SIZES)
  tokens = np.where(TOKENS == 7, 8, TOKENS)
  tokens[37] = 7
  options = dict(boundary=7, batch_size=8)
  long = _window_losses(model, tokens, [40], 12, **options)
  short = _window_losses(model, tokens, [40], 3, **options)
  np.testing.assert_allclose(long, short, rtol=1e-5)
  eight = _window_losses(model, tokens, [40], 12, n_devices=8, **options)
  np.testing.assert_allclose(long, eight, rtol=1e-5)
  with pytest.raises(InputError, match='--batch is 4, expected a multiple'):
    _window_losses(model, tokens, [40], 12, n_devices=8)
  with pytest.raises(InputError, match='token 11 has fewer than 12'):
    _window_losses(model, tokens, [11], 12)


def test_absolute_positions_end_where_they_end():
  """A model of which the effective context is known: 4 tokens at most."""
  absolute = dict(position_encoding='learned', n_positions=4)
  model = txl_jax.ModelConfig(**{**SIZES, 'memory_length': 0}, **absolute)
  positions = list(range(12, 80))
  losses_1CP = np.array(
    [[_window_losses(model, TOKENS, positions, c) for c in (2, 4, 6, 8)]]
  )
  np.testing.assert_array_equal(losses_1CP[0, 1], losses_1CP[0, 3])
  assert (losses_1CP[0, 0] != losses_1CP[0, 1]).any()
  found = effective_context(losses_1CP, [2, 4, 6, 8], 1.0)
  assert found.lengths_I[0] <= 4 and found.bounded_I[0]
