"""Generation as `txl_jax.generate` computes it, from random weights."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from txl_jax.benchmark.evaluation import Reader
from txl_jax.config import Config
from txl_jax.generation.decode import MOST_STEPS, stop_ids
from txl_jax.generation.loop import Rules, advance, begin, row_keys
from txl_jax.generation.prompts import check_prompt
from txl_jax.generation.sampling import Sampling
from txl_jax.model.cache import compute_copy


class Generation:
  """Rows that have a full memory, and go on for ever.

  Attributes:
    parameters: how many the model has.
    filled: calls that it took to fill the memory.
    lowered: a block of `MOST_STEPS` tokens of each row.
    compiled: the same.
  """

  def __init__(self, config: Config, n_rows: int, mesh: Mesh):
    """Fills the memory and compiles.

    Args:
      config: the experiment: `eval` has the memory, `sample` how is drawn.
      n_rows: texts that are written at once.
      mesh: of one device.

    Raises:
      InputError: for a model that cannot generate.
    """
    settings = dataclasses.replace(config.eval, batch_size=n_rows)
    prompt_B1 = jnp.zeros((n_rows, 1), jnp.int32)
    check_prompt(config.model, prompt_B1, None)
    reader = Reader(config.model, settings, mesh)
    self.parameters = sum(x.size for x in jax.tree.leaves(reader.params))
    self.filled = reader.fill()
    model, limit = reader.model, jnp.iinfo(jnp.int32).max
    rules = Rules(model, Sampling.of(config.sample), None, MOST_STEPS)
    stop_X = stop_ids(model, ())
    copy = jax.jit(compute_copy, static_argnums=0)
    self._params = params = copy(model, reader.params)
    keys_B = row_keys(jax.random.key(1), n_rows)
    self._decoding, *_ = jax.jit(begin, static_argnums=0)(
      *(rules, params, prompt_B1, None, reader.memory, keys_B, 0),
      *(stop_X, limit),
    )

    def block(params: dict, decoding: tuple) -> tuple:
      return advance(rules, params, decoding, stop_X, limit)

    jitted = jax.jit(block, donate_argnums=1)
    self.lowered = jitted.lower(params, self._decoding)
    self.compiled = self.lowered.compile()

  def run(self, blocks: int) -> None:
    """Writes on, then waits for the last block."""
    for _ in range(blocks):
      self._decoding, *written = self.compiled(self._params, self._decoding)
    jax.block_until_ready((self._decoding, written))
