"""Every use of dropout draws a seed of its own."""

import jax
import jax.numpy as jnp

import txl_jax
from txl_jax.model import attention, layer, positions
from txl_jax.ops.dropout import seed_of


def test_each_layer_and_each_use_has_its_own_seed(monkeypatch):
  seeds = []

  def record(seed: jax.Array) -> jax.Array:
    seeds.append(int(seed))
    return seed

  def recorded(key: jax.Array) -> jax.Array:
    seed = seed_of(key)
    return jax.pure_callback(record, seed, seed)

  for module in (attention, layer, positions):
    monkeypatch.setattr(module, 'seed_of', recorded)
  config = txl_jax.ModelConfig(
    **dict(vocab_size=5, n_layers=3, n_heads=1, d_model=4, d_head=4, d_ff=4),
    **dict(memory_length=2, dropout=0.25, attention_dropout=0.125),
  )
  tokens_BT = jnp.zeros((1, 2), int)
  params = txl_jax.init_params(config, jax.random.key(0))
  memory = txl_jax.init_memory(config, 1)
  nll_BT, _ = txl_jax.score(
    *(config, params, tokens_BT, tokens_BT, memory),
    dropout_key=jax.random.key(1),
  )
  nll_BT.block_until_ready()
  # Four in a layer; the embedding, the positions and the last hidden states.
  assert len(seeds) == len(set(seeds)) == 3 * 4 + 3
