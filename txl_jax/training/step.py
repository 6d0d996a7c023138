"""One update: state and batch in, state and metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from txl_jax.config import ModelConfig
from txl_jax.data.streams import Batch
from txl_jax.model.memory import Memory
from txl_jax.model.segments import score_segments
from txl_jax.training import chunks
from txl_jax.training.norms import group_norms, total_norm
from txl_jax.training.state import TrainState

TrainStep = Callable[..., tuple[TrainState, dict]]


def identity(tree: Any) -> Any:
  """Under `jax.jit` sums are global already."""
  return tree


def scored(per_token_SBT: Any, loss: str) -> Any:
  """Those of a batch's targets, or their losses, that are trained on.

  Args:
    per_token_SBT: an array of either.
    loss: 'full', or 'half' for the last half of each segment, whose tokens have
      at least half a segment before them (Dai et al. 2019, section 4.2).
  """
  skipped = per_token_SBT.shape[-1] // 2 if loss == 'half' else 0
  return per_token_SBT[..., skipped:]


def make_train_step(
  config: ModelConfig,
  optimizer: optax.GradientTransformation,
  *,
  loss: str = 'full',
  row_chunks: int = 1,
  stop: Callable[[dict], dict] = identity,
  average: Callable[[Any, dict, jax.Array], Any] | None = None,
) -> TrainStep:
  """Builds the pure train step of a model and an optimizer.

  Args:
    config: the model.
    optimizer: from optax.
    loss: which tokens are trained on, as in `scored`.
    row_chunks: the rows are read in so many chunks, one after another, and
      their gradients added: less memory, same update.
    stop: takes the parameters that the loss is computed from, and stops the
      gradient of those that are frozen.
    average: (average, parameters, updates done) -> average; None keeps none.

  Returns:
    `train_step(state, batch, *, reduce=identity)`. It scans over the segments
    of the batch, the memory threaded through, and updates the parameters with
    the gradient of the mean loss. `reduce` is applied to the sums of loss,
    count and gradients before they are divided: under `jax.pmap` it is a
    `jax.lax.psum`. The metrics are `loss_sum` and `count` (tokens), the norm of
    the gradient before clipping (`gradient_norm`, and `gradient_norms` by
    group) and `skipped`.

    If loss or gradient is not finite, the step counts and is `skipped`: the
    parameters, the optimizer and the average stay what they were, and rows
    whose memory is not finite forget.
  """

  def train_step(
    state: TrainState, batch: Batch, *, reduce: Callable = identity
  ) -> tuple[TrainState, dict]:
    total, gradients, memory = _gradients(
      config, state, batch, loss=loss, row_chunks=row_chunks, stop=stop
    )
    count = jnp.asarray(scored(batch.targets_SBT, loss).size, jnp.float32)
    total, count, gradients = reduce((total, count, gradients))
    # The name is what `txl bench --breakdown` counts this part by.
    with jax.named_scope('optimizer'):
      gradients = jax.tree.map(lambda g: g / count, gradients)
      norms = group_norms(gradients)
      norm = total_norm(norms)
      finite = jnp.isfinite(total) & jnp.isfinite(norm)
      new = _updated(optimizer, state, gradients, average)
      new = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), new, _learned(state)
      )
    memory = forget_broken_rows(memory)
    metrics = dict(loss_sum=total, count=count, gradient_norm=norm)
    metrics |= dict(gradient_norms=norms, skipped=~finite)
    return state.replace(step=state.step + 1, memory=memory, **new), metrics

  return train_step


def several_steps(train_step: TrainStep, n: int) -> TrainStep:
  """Takes n steps in one call.

  Their batches come as one, the segments of the first before those of the next;
  their metrics go stacked.
  """

  def steps(state: TrainState, batches: Batch) -> tuple[TrainState, dict]:
    batches = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batches)
    return jax.lax.scan(train_step, state, batches)

  return steps


def _gradients(
  config: ModelConfig,
  state: TrainState,
  batch: Batch,
  *,
  loss: str,
  row_chunks: int,
  stop: Callable[[dict], dict],
) -> tuple[jax.Array, dict, Memory]:
  """Sums over the batch of loss and gradients, and the memory after it."""
  dropping = config.dropout > 0 or config.attention_dropout > 0
  key = jax.random.fold_in(state.key, state.step) if dropping else None

  def loss_sum(params: dict, batch: Batch, memory: Memory, key: Any) -> tuple:
    nll_SBT, memory = score_segments(
      config,
      stop(params),
      batch.tokens_SBT,
      batch.targets_SBT,
      memory,
      starts_SBT=batch.starts_SBT,
      dropout_key=key,
    )
    return scored(nll_SBT, loss).sum(), memory

  differentiate = jax.value_and_grad(loss_sum, has_aux=True)
  if row_chunks == 1:
    (total, memory), gradients = differentiate(
      state.params, batch, state.memory, key
    )
    return total, gradients, memory

  def add(sums: tuple, chunk: tuple) -> tuple[tuple, Memory]:
    index, batch, memory = chunk
    own_key = None if key is None else jax.random.fold_in(key, index)
    (total, memory), gradients = differentiate(
      state.params, batch, memory, own_key
    )
    return jax.tree.map(jnp.add, sums, (total, gradients)), memory

  wide = jnp.promote_types(config.dtype, jnp.float32)
  zeros = jnp.zeros((), wide), jax.tree.map(jnp.zeros_like, state.params)
  parts = (
    jnp.arange(row_chunks),
    chunks.split_batch(batch, row_chunks),
    chunks.split_memory(state.memory, row_chunks),
  )
  (total, gradients), memory = jax.lax.scan(add, zeros, parts)
  return total, gradients, chunks.join_memory(memory)


def _learned(state: TrainState) -> dict:
  """What an update changes."""
  names = ('params', 'opt_state', 'average')
  return {name: getattr(state, name) for name in names}


def _updated(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  gradients: dict,
  average: Callable | None,
) -> dict:
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  if state.plateau is not None:
    updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
  params = optax.apply_updates(state.params, updates)
  new = dict(params=params, opt_state=opt_state, average=state.average)
  if average is not None:
    new['average'] = average(state.average, params, state.step + 1)
  return new


def forget_broken_rows(memory: Memory) -> Memory:
  """Empties the rows of a memory that hold something not finite.

  Without asking first whether any does: with a condition that the host must
  know, a GPU would wait for it, and then for the next step to be launched.
  """
  # Each layer adds to the states below: what breaks one breaks the last, too.
  whole_B = jnp.isfinite(memory.hidden_NBMD[-1]).all(axis=(1, 2))
  return memory.replace(
    hidden_NBMD=jnp.where(whole_B[None, :, None, None], memory.hidden_NBMD, 0),
    valid_B=jnp.where(whole_B, memory.valid_B, 0),
  )
