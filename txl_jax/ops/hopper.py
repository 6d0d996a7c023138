"""Where the kernels for NVIDIA's Hopper run."""

import jax
import jax.numpy as jnp

from txl_jax.errors import InputError
from txl_jax.ops.shards import is_divided, n_shards

CAPABILITY, JAX_VERSION = 9.0, (0, 11)
# Of an H100 or H200 with NVLink.
MULTIPROCESSORS = 132
# Queries and keys that a kernel takes at once, and widths of heads that it has;
# others are padded.
KERNEL_TILE, KERNEL_WIDTHS = 64, (64, 128)
# Rows and columns of a product that a block of a kernel computes.
KERNEL_SIDE = 2 * KERNEL_TILE
# Rows that a kernel normalises at once, columns that a warp takes at once, and
# those for which it has registers.
NORM_ROWS, NORM_COLUMNS, NORM_WIDEST = 4, 128, 1024
# Rows behind the last of a table of positions that they may touch.
TABLE_MARGIN = KERNEL_TILE + 32


def on_hopper() -> bool:
  """Whether this is a Hopper GPU, and JAX new enough."""
  if jax.default_backend() != 'gpu' or jax.__version_info__ < JAX_VERSION:
    return False
  return float(jax.devices()[0].compute_capability) == CAPABILITY


def rows_for_kernels(implementation: str, x_BTD: jax.Array) -> int:
  """Tokens of a device that kernels for hidden states may take, or 0.

  Args:
    implementation: they are asked for by 'auto' and 'mosaic_gpu'.
    x_BTD: the hidden states, on all devices.
  """
  B, T, _ = x_BTD.shape
  takes = (
    implementation in ('auto', 'mosaic_gpu')
    and x_BTD.dtype == jnp.bfloat16
    and B % n_shards('rows') == 0
    and not is_divided('heads')
    and on_hopper()
  )
  return B // n_shards('rows') * T if takes else 0


def check_hopper() -> None:
  """Raises an InputError where the kernels do not run."""
  if not on_hopper():
    kind = jax.devices()[0].device_kind
    needed = '.'.join(map(str, JAX_VERSION))
    raise InputError(
      "attention_implementation 'mosaic_gpu' needs an NVIDIA GPU of compute "
      f'capability {CAPABILITY} and jax {needed} or newer, found {kind!r} and '
      f'jax {jax.__version__}'
    )
