"""Fresh windows: the loss of a token given exactly the c tokens before it.

A memory does not do for this: through the layers below, what is remembered has
seen what came before it. Nor does a segment, whose tokens see unequally much.
So each token gets a window of its own, as a model without memory is evaluated
(Dai et al. 2019, figure 1b).
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh

from txl_jax.config import ModelConfig
from txl_jax.errors import InputError
from txl_jax.model.memory import init_memory
from txl_jax.model.transformer import TransformerXL
from txl_jax.parallel import mesh as mesh_lib
from txl_jax.parallel.loading import place_all


def window_model(
  model: ModelConfig, clamp_length: int | None = None
) -> ModelConfig:
  """The model that reads windows: no memory, and no span but the window."""
  return dataclasses.replace(
    model,
    memory_length=0,
    attention_span=None,
    clamp_length=clamp_length,
    remat=False,
  )


def window_losses(
  model: ModelConfig,
  params: dict,
  tokens: np.ndarray,
  positions: np.ndarray,
  context: int,
  *,
  boundary: int | None,
  batch_size: int,
  mesh: Mesh,
) -> np.ndarray:
  """The losses of some tokens, each given the c tokens before it alone.

  A model of absolute positions is given its `n_positions` at most.

  Args:
    model: from `window_model`.
    params: its parameters.
    tokens: ids of a text [n].
    positions: of the tokens [P], each at least c.
    context: c, at least 1.
    boundary: the id that begins a document: nothing before it is seen.
    batch_size: windows at once.
    mesh: they are divided among its devices.

  Returns:
    Negative log-likelihoods, natural log, float32 [P].

  Raises:
    InputError: for windows that do not divide among the devices, or a token
      with fewer than c before it.
  """
  mesh_lib.check_rows(mesh, batch_size, '--batch')
  if len(positions) and positions.min() < context:
    raise InputError(
      f'token {positions.min()} has fewer than {context} tokens before it'
    )
  if model.absolute_positions:
    context = min(context, model.n_positions)
  column_T, found = np.arange(-context, 0), []
  for low in range(0, len(positions), batch_size):
    position_B = np.resize(positions[low : low + batch_size], batch_size)
    windows_BT = tokens[position_B[:, None] + column_T].astype(np.int32)
    starts_BT = np.zeros(windows_BT.shape, np.bool_)
    if boundary is not None:
      starts_BT = windows_BT == boundary
    targets_B = tokens[position_B].astype(np.int32)
    batch = windows_BT[None], starts_BT[None], targets_B[None]
    with mesh_lib.sharded(mesh):
      nll_B = score_windows(
        model, mesh, params, *place_all(mesh, batch, batch_size)
      )
    found.append(nll_B)
  nll = np.concatenate(jax.device_get(found) or [np.zeros(0, np.float32)])
  return nll[: len(positions)].astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score_windows(
  model: ModelConfig,
  mesh: Mesh,
  params: dict,
  windows_1BT: jax.Array,
  starts_1BT: jax.Array,
  targets_1B: jax.Array,
) -> jax.Array:
  """The loss of the token after each window [B].

  Args:
    model: from `window_model`.
    mesh: where the arrays lie.
    params: its parameters.
    windows_1BT: token ids.
    starts_1BT: True where a token begins a document.
    targets_1B: the tokens after the windows.
  """
  module, variables = TransformerXL(model), {'params': params}
  hidden_BTD, _ = module.apply(
    variables,
    windows_1BT[0],
    init_memory(model, windows_1BT.shape[1]),
    starts_1BT[0] if model.memory_start == 'empty' else None,
  )
  nll_B1 = module.apply(
    variables, hidden_BTD[:, -1:], targets_1B[0][:, None], method='losses'
  )
  whole = mesh_lib.replicated(mesh)
  return jax.lax.with_sharding_constraint(nll_B1[:, 0], whole)
