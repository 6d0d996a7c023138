"""Which axis of which parameter is divided over which axis of the mesh.

Fully sharded data parallelism (`fsdp`) divides what is stored, and XLA gathers
it where it is used; tensor parallelism (`tensor`) divides the work as well.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

P = PartitionSpec

# The parameters' paths, and their axes: N layers, D model, H heads, C head
# width, F feed-forward, V vocabulary, E embedding, P positions. Each path
# matches one line.
TABLE = (
  # [V, E] words over tensor, as the softmax is divided by its words.
  (r'(embedding|softmax)/table_\d+', P('tensor', 'fsdp')),
  # [E, D] between the width of a cluster and the model's.
  (r'(embedding|softmax)/projection_\d+', P(None, 'fsdp')),
  # [V] with the words.
  (r'softmax/bias', P('tensor')),
  # [clusters, E] a few rows.
  (r'softmax/cluster_weight', P(None, 'fsdp')),
  # [clusters] a few numbers.
  (r'softmax/cluster_bias', P()),
  # [H, C] u and v with their heads.
  (r'(content|position)_bias', P('tensor')),
  # [N, H, C] the same where each layer has its own.
  (r'layers/attention/(content|position)_bias', P(None, 'tensor')),
  # [N, D, H, C] heads are independent of each other.
  (
    r'layers/attention/(query|key|value|relative)',
    P(None, 'fsdp', 'tensor'),
  ),
  # [N, H, C, D] sums over the heads.
  (r'layers/attention/output', P(None, 'tensor', None, 'fsdp')),
  # [N, P, H, C] Shaw's embeddings of distance, with their heads.
  (r'layers/attention/distance_embedding', P(None, 'fsdp', 'tensor')),
  # [N, P, H] their biases.
  (r'layers/attention/distance_bias', P(None, None, 'tensor')),
  # [N, P, D] learned absolute positions.
  (r'layers/positions/table', P(None, None, 'fsdp')),
  # [N, D, F] the inner width is divided ...
  (r'layers/feed_forward/inner_kernel', P(None, 'fsdp', 'tensor')),
  # [N, F] ... with its bias ...
  (r'layers/feed_forward/inner_bias', P(None, 'tensor')),
  # [N, F, D] ... and summed over here.
  (r'layers/feed_forward/outer_kernel', P(None, 'tensor', 'fsdp')),
  # [N, D] as small as a layer norm.
  (r'layers/feed_forward/outer_bias', P()),
  # [N, D] layer norms.
  (r'layers/(attention|feed_forward)_norm/(scale|bias)', P()),
)


def path_name(path: tuple) -> str:
  """The names along a path of `jax.tree_util`, joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def matching_lines(path: str) -> list[PartitionSpec]:
  """What the lines of the table that a parameter's path matches say."""
  return [spec for pattern, spec in TABLE if re.fullmatch(pattern, path)]


def param_specs(mesh: Mesh, params: Any) -> Any:
  """How each parameter is divided: a tree of PartitionSpecs.

  An axis that the mesh does not divide evenly stays whole.

  Args:
    mesh: from `make_mesh`.
    params: arrays or their shapes.
  """

  def spec(path: tuple, leaf: Any) -> PartitionSpec:
    return PartitionSpec(
      *(
        None if name and leaf.shape[axis] % mesh.shape[name] else name
        for axis, name in enumerate(_line(path))
      )
    )

  return jax.tree_util.tree_map_with_path(spec, params)


def param_shardings(mesh: Mesh, params: Any) -> Any:
  """The same as NamedShardings."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), param_specs(mesh, params)
  )


def unsharded(mesh: Mesh, params: Any) -> list[str]:
  """A sentence for each axis size that the mesh should divide and does not."""
  found: dict[tuple[str, int], list[str]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    for size, name in zip(leaf.shape, _line(path)):
      if name and size % mesh.shape[name]:
        found.setdefault((name, size), []).append(path_name(path))
  return [
    f'config.mesh.{name} {mesh.shape[name]} does not divide {size}, so this '
    f'axis stays whole in {", ".join(paths)}.'
    for (name, size), paths in found.items()
  ]


def _line(path: tuple) -> PartitionSpec:
  matches = matching_lines(path_name(path))
  if len(matches) != 1:
    raise ValueError(
      f'{path_name(path)} matches {len(matches)} lines of the partition table, '
      'expected 1'
    )
  return matches[0]
