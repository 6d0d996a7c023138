"""One update: state and batch in, state and metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from txl_jax.config import ModelConfig
from txl_jax.data.streams import Batch
from txl_jax.model.segments import score_segments
from txl_jax.training.state import TrainState


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
) -> Callable[..., tuple[TrainState, dict]]:
  """Builds the pure train step of a model and an optimizer.

  Args:
    config: the model.
    optimizer: from optax.
    loss: which tokens are trained on, as in `scored`.

  Returns:
    `train_step(state, batch, *, reduce=identity)`. It scans over the segments
    of the batch, the memory threaded through, and updates the parameters with
    the gradient of the mean loss. `reduce` is applied to the sums of loss,
    count and gradients before they are divided: under `jax.pmap` it is a
    `jax.lax.psum`. The metrics are `loss_sum` and `count` (tokens), and
    `gradient_norm` before clipping.
  """
  dropping = config.dropout > 0 or config.attention_dropout > 0

  def train_step(
    state: TrainState, batch: Batch, *, reduce: Callable = identity
  ) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(state.key, state.step) if dropping else None

    def loss_sum(params: dict) -> tuple[jax.Array, Any]:
      nll_SBT, memory = score_segments(
        config,
        params,
        batch.tokens_SBT,
        batch.targets_SBT,
        state.memory,
        starts_SBT=batch.starts_SBT,
        dropout_key=key,
      )
      return scored(nll_SBT, loss).sum(), memory

    (total, memory), gradients = jax.value_and_grad(loss_sum, has_aux=True)(
      state.params
    )
    count = jnp.asarray(scored(batch.targets_SBT, loss).size, jnp.float32)
    total, count, gradients = reduce((total, count, gradients))
    gradients = jax.tree.map(lambda g: g / count, gradients)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    new_state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      memory=memory,
    )
    gradient_norm = optax.tree.norm(gradients)
    metrics = dict(loss_sum=total, count=count, gradient_norm=gradient_norm)
    return new_state, metrics

  return train_step
