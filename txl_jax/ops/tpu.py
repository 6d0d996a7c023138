"""Where the kernels for TPUs run."""

import jax


def on_tpu() -> bool:
  """Whether what is traced is for a TPU, be it here or not."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (device.platform if device else jax.default_backend()) == 'tpu'
