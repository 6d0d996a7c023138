"""Sizes of a layer as it computes: the paper's 410, 41 and 2100 are odd ones.

Matrix units want rows of a multiple of 16 bytes. Else each product has its
operands copied to such rows and its result copied back; with parameters and
activations that are padded with zeros once there is nothing to copy. Heads are
padded to what the attention wants.
"""

from typing import NamedTuple

import jax

from txl_jax.config import ModelConfig
from txl_jax.ops.alignment import aligned, pad
from txl_jax.ops.relative_attention import head_width

# Of the parameters of a layer; the others have the axis D.
AXES = {
  **dict.fromkeys(('query', 'key', 'value', 'relative'), 'DHC'),
  'output': 'HCD',
  **dict.fromkeys(('content_bias', 'position_bias'), 'HC'),
  'inner_kernel': 'DF',
  'inner_bias': 'F',
  'outer_kernel': 'FD',
}


class Widths(NamedTuple):
  """Of a layer: D, C and F."""

  d_model: int
  d_head: int
  d_ff: int


def widths(config: ModelConfig, padded: bool) -> Widths:
  """The widths as they are configured, or padded with zeros."""
  plain = Widths(config.d_model, config.d_head, config.d_ff)
  if not padded:
    return plain
  C = head_width(config.attention_implementation, config.dtype, plain.d_head)
  return Widths(aligned(plain.d_model), C, aligned(plain.d_ff))


def pads(config: ModelConfig) -> bool:
  """Whether a layer computes with padded widths."""
  odd = widths(config, True) != widths(config, False)
  return odd and config.position_encoding == 'relative'


def pad_layer(config: ModelConfig, params: dict) -> dict:
  """A layer's parameters with padded widths."""
  D, C, F = widths(config, True)
  size = {'D': D, 'C': C, 'F': F, 'H': config.n_heads}

  def padded(path: tuple, x: jax.Array) -> jax.Array:
    axes = AXES.get(path[-1].key, 'D')
    return pad(x, tuple(size[axis] for axis in axes))

  return jax.tree_util.tree_map_with_path(padded, params)
