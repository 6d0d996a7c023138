"""Generation as `txl_jax.generate` computes it, from random weights."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from txl_jax.benchmark.evaluation import Reader
from txl_jax.config import Config, ModelConfig, SampleConfig
from txl_jax.generation.decode import MOST_STEPS, stop_ids
from txl_jax.generation.loop import Decoding, Rules, advance, begin, row_keys
from txl_jax.generation.prompts import check_prompt
from txl_jax.generation.sampling import Sampling
from txl_jax.model.cache import compute_copy, remembered
from txl_jax.model.memory import AnyMemory


class Generation:
  """Rows that have a full memory, and go on for ever.

  Attributes:
    parameters: how many the model has.
    filled: calls that it took to fill the memory.
    compiled: a block of `MOST_STEPS` tokens of each row.
    compile: the same, with options of the compiler.
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
    check_prompt(config.model, jnp.zeros((n_rows, 1), jnp.int32), None)
    reader = Reader(config.model, settings, mesh)
    self.parameters = sum(x.size for x in jax.tree.leaves(reader.params))
    self.filled = reader.fill()
    model = reader.model
    rules = rules_for(model, config.sample)
    copy = jax.jit(compute_copy, static_argnums=0)
    self._params = copy(model, reader.params)
    start = jax.jit(begin_rows, static_argnums=(0, 3))
    memory = jax.jit(remembered, static_argnums=0)(model, reader.cache)
    self._decoding = start(rules, self._params, memory, n_rows)
    lowered = lower_block(rules, self._params, self._decoding)
    self.compile, self.compiled = lowered.compile, lowered.compile()

  def run(self, blocks: int) -> None:
    """Writes on, then waits for the last block."""
    for _ in range(blocks):
      self._decoding, *written = self.compiled(self._params, self._decoding)
    jax.block_until_ready((self._decoding, written))


def rules_for(model: ModelConfig, sample: SampleConfig) -> Rules:
  """How is drawn, a block at a time."""
  return Rules(model, Sampling.of(sample), None, MOST_STEPS)


def begin_rows(
  rules: Rules, params: dict, memory: AnyMemory, n_rows: int
) -> Decoding:
  """The state after a prompt of one token."""
  decoding, *_ = begin(
    *(rules, params, jnp.zeros((n_rows, 1), jnp.int32), None, memory),
    *(row_keys(jax.random.key(1), n_rows), 0, *_endless(rules)),
  )
  return decoding


def lower_block(
  rules: Rules, params: dict, decoding: Decoding
) -> jax.stages.Lowered:
  """`MOST_STEPS` tokens of each row, for arrays or their placed shapes."""

  def block(params: dict, decoding: Decoding) -> tuple:
    return advance(rules, params, decoding, *_endless(rules))

  return jax.jit(block, donate_argnums=1).lower(params, decoding)


def _endless(rules: Rules) -> tuple:
  """No token to stop at, and no last one."""
  return stop_ids(rules.config, ()), jnp.iinfo(jnp.int32).max
