"""What evaluation and generation will need, found out by compiling them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from txl_jax.benchmark import plan_program as program
from txl_jax.benchmark.evaluation import (
  checked_model,
  init_reading,
  lower_reading,
  some_text,
)
from txl_jax.benchmark.generation import begin_rows, lower_block, rules_for
from txl_jax.benchmark.plan_program import Say, TooLargeError
from txl_jax.config import Config, EvalConfig, ModelConfig
from txl_jax.evaluation.perplexity import SEGMENTS_PER_CALL
from txl_jax.generation.decode import MOST_STEPS
from txl_jax.generation.prompts import check_prompt
from txl_jax.model.cache import compute_copy, remembered
from txl_jax.model.operations import operations_per_token
from txl_jax.parallel import mesh as mesh_lib


def plan_evaluation(
  config: Config, devices: Sequence[jax.Device], *, say: Say
) -> dict:
  """Compiles a call of evaluation, eight segments; what each chip needs.

  Args:
    config: the experiment; `eval` has rows, segment and memory.
    devices: among which the rows are divided.
    say: receives lines of progress.

  Returns:
    The fields of a plan, as docs/tpu.md explains them, all for one chip.

  Raises:
    InputError: if the rows do not divide among the devices, or for a stride.
  """
  mesh, settings = mesh_lib.make_mesh(devices=devices), config.eval
  model = checked_model(config.model, settings, mesh)
  params, cache = _shapes(model, settings, mesh)
  text = some_text(model.vocab_size, settings, 0)
  batch = program.placed(text, mesh_lib.by_rows(mesh, text))
  heading = program.heading(
    model, mesh, settings.batch_size, settings.segment_length
  )
  parts = {'parameters': params, 'memory': cache, 'batch': batch}
  lowered = lower_reading(model, mesh, params, cache, batch)
  plan = _plan('eval', heading, parts, lowered, model, mesh, say)
  n_tokens = settings.batch_size * settings.segment_length * SEGMENTS_PER_CALL
  return _bound(plan, model, n_tokens, settings.segment_length)


def plan_generation(
  config: Config, devices: Sequence[jax.Device], n_rows: int, *, say: Say
) -> dict:
  """Compiles a block of 64 tokens; what the chip needs that writes them.

  Args:
    config: the experiment; `eval` has the memory, `sample` how is drawn.
    devices: of which the first is used.
    n_rows: texts at once.
    say: receives lines of progress.

  Returns:
    The fields of a plan, as docs/tpu.md explains them.

  Raises:
    InputError: for a model that cannot generate.
  """
  mesh = mesh_lib.make_mesh(devices=devices[:1])
  settings = dataclasses.replace(config.eval, batch_size=n_rows)
  model = checked_model(config.model, settings, mesh)
  rules = rules_for(model, config.sample)
  params, cache = _shapes(model, settings, mesh)
  check_prompt(config.model, jax.numpy.zeros((n_rows, 1), int), None)
  with jax.set_mesh(mesh):
    params = jax.eval_shape(lambda tree: compute_copy(model, tree), params)
    memory = jax.eval_shape(lambda tree: remembered(model, tree), cache)
    decoding = jax.eval_shape(
      lambda *trees: begin_rows(rules, *trees, n_rows), params, memory
    )
  whole = mesh_lib.replicated(mesh)
  params, decoding = (
    program.placed(tree, jax.tree.map(lambda _: whole, tree))
    for tree in (params, decoding)
  )
  heading = program.heading(model, mesh, n_rows, 1)
  parts = {'parameters': params, 'memory': decoding}
  with jax.set_mesh(mesh):
    lowered = lower_block(rules, params, decoding)
  plan = _plan('generate', heading, parts, lowered, model, mesh, say)
  return _bound(plan, model, n_rows * MOST_STEPS, 1)


def _shapes(
  model: ModelConfig, settings: EvalConfig, mesh: Mesh
) -> tuple[Any, Any]:
  """Parameters and cache, and how they lie on the devices."""
  with mesh_lib.sharded(mesh):
    params, cache = jax.eval_shape(lambda: init_reading(model, settings))
  whole = mesh_lib.replicated(mesh)
  return (
    program.placed(params, jax.tree.map(lambda _: whole, params)),
    program.placed(cache, mesh_lib.cache_shardings(mesh, cache)),
  )


def _plan(
  name: str,
  heading: dict,
  parts: dict,
  lowered: jax.stages.Lowered,
  model: ModelConfig,
  mesh: Mesh,
  say: Say,
) -> dict:
  plan = {
    'program': name,
    **heading,
    'parameters': sum(x.size for x in jax.tree.leaves(parts['parameters'])),
    'bytes': {part: program.held(tree) for part, tree in parts.items()},
  }
  say(f'compiling {name}')
  try:
    compiled = program.compile_program(lowered)
  except TooLargeError as error:
    return plan | {'fits': False, 'needed_bytes': error.needed}
  return program.weigh(plan, compiled, model, mesh)


def _bound(plan: dict, model: ModelConfig, n_tokens: int, segment: int) -> dict:
  if 'collectives' not in plan:
    return plan
  count = operations_per_token(
    model, batch_size=plan['batch'], segment_length=segment
  )
  # Each token is projected once, and the table of positions once for all.
  per_token = count.forward - count.memory - count.positions
  plan['operations'] = per_token * n_tokens / plan['devices']
  return program.bound(plan, n_tokens)
