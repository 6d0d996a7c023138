"""Muon: which parameters are matrices, and how they are laid out.

| path | stored as | the matrices |
|---|---|---|
| `layers/attention/query` | [N,D,H,C] | N of D x HC |
| `layers/attention/key` | [N,D,H,C] | N of D x HC |
| `layers/attention/value` | [N,D,H,C] | N of D x HC |
| `layers/attention/relative` | [N,D,H,C] | N of D x HC |
| `layers/attention/output` | [N,H,C,D] | N of HC x D |
| `layers/feed_forward/inner_kernel` | [N,D,F] | N of D x F |
| `layers/feed_forward/outer_kernel` | [N,F,D] | N of F x D |
| `embedding/projection_*`, `softmax/projection_*` | [E,D] | E x D |

All others (embedding and softmax tables, cluster weights, learned positions,
biases, u and v, layer norms) are left to Adam.
"""

import math
from typing import Any

import jax
import optax
from optax import contrib

from txl_jax.optimizer_config import OptimizerConfig
from txl_jax.training import groups

# Pattern of paths -> axes of the input and of the output; the rest are stacked.
MATRICES = {
  'layers/attention/(query|key|value|relative)': ((1,), (2, 3)),
  'layers/attention/output': ((1, 2), (3,)),
  'layers/feed_forward/(inner|outer)_kernel': ((1,), (2,)),
  r'(embedding|softmax)/projection_\d+': ((0,), (1,)),
}
# The root mean square of an update of AdamW, about (Liu et al. 2025, section
# 2.2): with it learning rate and weight decay carry over.
UPDATE_RMS = 0.2


def scale_by_muon(config: OptimizerConfig) -> optax.GradientTransformation:
  """Muon for the matrices, Adam for the rest, before rate and weight decay.

  The momentum of a matrix, of decay 0.95, is made nearly orthogonal and scaled
  to the root mean square that AdamW's updates have (Jordan et al. 2024; Liu et
  al. 2025, "Muon is scalable for LLM training"). Not `optax.contrib.muon`,
  whose Adam has Nesterov's momentum, too, and decays biases.

  Args:
    config: `b1` and `b2` of Adam, `epsilon` of both.
  """
  matrices = contrib.scale_by_muon(
    eps=config.epsilon, weight_dimension_numbers=matrix_axes
  )
  return optax.partition(
    {
      'matrix': optax.chain(matrices, optax.stateless(_scale_to_rms)),
      'other': optax.scale_by_adam(config.b1, config.b2, config.epsilon),
    },
    lambda tree: groups.map_paths(
      lambda path: 'matrix' if _axes(path) else 'other', tree
    ),
  )


def _scale_to_rms(updates: Any, params: Any) -> Any:
  """An orthogonal matrix has the root mean square 1 / sqrt(longer side)."""
  del params

  def scale(update: jax.Array, axes: contrib.MuonDimensionNumbers) -> jax.Array:
    sides = [math.prod(update.shape[axis] for axis in side) for side in axes]
    return update * (UPDATE_RMS * math.sqrt(max(sides)))

  return jax.tree.map(scale, updates, matrix_axes(updates))


def matrix_axes(tree: Any) -> Any:
  """A tree of `MuonDimensionNumbers`, None for what is no matrix."""
  return groups.map_paths(_axes, tree)


def _axes(path: str) -> contrib.MuonDimensionNumbers | None:
  for pattern, axes in MATRICES.items():
    if groups.matches([pattern], path):
      return contrib.MuonDimensionNumbers(*axes)
  return None
