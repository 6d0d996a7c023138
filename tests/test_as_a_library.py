"""Another project: its own optax loop and mesh, our functional API alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import txl_jax

CONFIG = txl_jax.ModelConfig(
  vocab_size=30,
  n_layers=2,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=32,
  memory_length=12,
  cutoffs=(10, 20),
  div_val=2,
  dropout=0.1,
)
N_STEPS, N_ROWS, LENGTH = 120, 8, 12


def _batches() -> np.ndarray:
  """Rows that count upwards, each from its own start: [steps, B, T + 1]."""
  start_B1 = np.arange(N_ROWS)[:, None] * 3
  step = np.arange(N_STEPS)[:, None, None] * LENGTH
  return (start_B1 + step + np.arange(LENGTH + 1)) % CONFIG.vocab_size


def _mesh(n_devices: int) -> jax.sharding.Mesh:
  return jax.make_mesh(
    (n_devices,),
    ('rows',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:n_devices],
  )


@functools.cache
def _trained(n_devices: int) -> tuple[dict, list[float]]:
  """Parameters and losses after the other project's training loop."""
  optimizer = optax.adamw(1e-2)

  @jax.jit
  def update(params, opt_state, memory, text, key):
    def loss(params):
      nll_BT, new_memory = txl_jax.score(
        CONFIG, params, text[:, :-1], text[:, 1:], memory, dropout_key=key
      )
      return nll_BT.mean(), new_memory

    (value, memory), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, memory, value

  mesh = _mesh(n_devices)
  with jax.set_mesh(mesh):
    params = txl_jax.init_params(CONFIG, jax.random.key(0))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    opt_state = optimizer.init(params)
    memory = txl_jax.Memory(
      hidden_NBMD=NamedSharding(mesh, PartitionSpec(None, 'rows')),
      valid_B=NamedSharding(mesh, PartitionSpec('rows')),
    )
    memory = jax.device_put(txl_jax.init_memory(CONFIG, N_ROWS), memory)
    rows, losses = NamedSharding(mesh, PartitionSpec('rows')), []
    for i, text in enumerate(_batches()):
      text = jax.device_put(text, rows)
      key = jax.random.fold_in(jax.random.key(1), i)
      params, opt_state, memory, value = update(
        params, opt_state, memory, text, key
      )
      losses.append(float(value))
  assert (memory.valid_B == CONFIG.memory_length).all()
  return jax.device_get(params), losses


@pytest.mark.slow
def test_it_learns_to_count():
  params, losses = _trained(1)
  assert losses[0] > 3.0
  assert losses[-1] < 0.5
  memory = txl_jax.init_memory(CONFIG, 2)
  # As long as a segment and somewhat shorter: a text's first few tokens are
  # seen in one step of training alone.
  lengths_B = jnp.array([12, 8])
  prompt_BT = (jnp.array([[4], [22]]) + jnp.arange(12)) % CONFIG.vocab_size
  prompt_BT = jnp.where(jnp.arange(12) < lengths_B[:, None], prompt_BT, 0)
  tokens_BL, _ = txl_jax.generate(
    CONFIG,
    params,
    prompt_BT,
    memory,
    length=4,
    key=jax.random.key(0),
    prompt_lengths_B=lengths_B,
    temperature=0,
  )
  assert tokens_BL.tolist() == [[16, 17, 18, 19], [0, 1, 2, 3]]


@pytest.mark.slow
def test_its_mesh_makes_no_difference():
  _, losses = _trained(1)
  _, losses_8 = _trained(8)
  # Later the rounding of different orders of summation has grown.
  np.testing.assert_allclose(losses_8[:30], losses[:30], rtol=1e-4)


def test_scoring_works_under_its_transformations():
  params, _ = _trained(1)
  text_SBT = jnp.asarray(_batches()[:3])
  memory = txl_jax.init_memory(CONFIG, N_ROWS)
  nll_SBT, after = txl_jax.score_segments(
    CONFIG, params, text_SBT[..., :-1], text_SBT[..., 1:], memory
  )
  assert nll_SBT.shape == (3, N_ROWS, LENGTH)

  def one_row(text_ST, memory):
    nll_SBT, _ = txl_jax.score_segments(
      CONFIG, params, text_ST[:, None, :-1], text_ST[:, None, 1:], memory
    )
    return nll_SBT[:, 0]

  single = txl_jax.init_memory(CONFIG, 1)
  mapped_SBT = jax.vmap(one_row, in_axes=(1, None), out_axes=1)(
    text_SBT, single
  )
  np.testing.assert_allclose(mapped_SBT, nll_SBT, rtol=1e-4, atol=1e-5)
  projected = txl_jax.project_memory(CONFIG, params, after)
  logp_BTV, kept = txl_jax.log_probs(
    CONFIG, params, text_SBT[0, :, :1], projected
  )
  assert isinstance(kept, txl_jax.ProjectedMemory)
  np.testing.assert_allclose(jnp.exp(logp_BTV).sum(-1), 1, rtol=1e-5)
