"""What the makers say of their chips, by `jax.Device.device_kind`.

The peaks are those of dense bfloat16 matrix products with sums in float32;
NVIDIA's data sheets give twice as much for matrices half of which is zero.
"""

from typing import NamedTuple


class Chip(NamedTuple):
  """Published limits of one device.

  Attributes:
    flops: bfloat16 operations a second.
    bandwidth: bytes a second of its main memory, read and written together.
    memory: bytes of it.
    network: bytes a second that it sends to its neighbours over all links.
    source: where it says so.
  """

  flops: float
  bandwidth: float
  memory: float
  network: float
  source: str


_TPU = 'https://cloud.google.com/tpu/docs/'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center/'
_V5E = Chip(197e12, 819e9, 16e9, 200e9, _TPU + 'v5e')
_V5P = Chip(459e12, 2765e9, 95e9, 600e9, _TPU + 'v5p')
_V6E = Chip(918e12, 1638e9, 32e9, 448e9, _TPU + 'v6e')
_CHIPS = {
  'NVIDIA H200': Chip(989e12, 4.8e12, 141e9, 450e9, _NVIDIA + 'h200'),
  'NVIDIA H200 NVL': Chip(835e12, 4.8e12, 141e9, 450e9, _NVIDIA + 'h200'),
  'NVIDIA H100 80GB HBM3': Chip(989e12, 3.35e12, 80e9, 450e9, _NVIDIA + 'h100'),
  'NVIDIA H100 NVL': Chip(835e12, 3.9e12, 94e9, 300e9, _NVIDIA + 'h100'),
  'NVIDIA H100 PCIe': Chip(756e12, 2.0e12, 80e9, 300e9, _NVIDIA + 'h100'),
  'NVIDIA A100-SXM4-40GB': Chip(312e12, 1555e9, 40e9, 300e9, _NVIDIA + 'a100'),
  'NVIDIA A100-PCIE-40GB': Chip(312e12, 1555e9, 40e9, 300e9, _NVIDIA + 'a100'),
  'NVIDIA A100-SXM4-80GB': Chip(312e12, 2039e9, 80e9, 300e9, _NVIDIA + 'a100'),
  'NVIDIA A100 80GB PCIe': Chip(312e12, 1935e9, 80e9, 300e9, _NVIDIA + 'a100'),
  'TPU v4': Chip(275e12, 1200e9, 32e9, 300e9, _TPU + 'v4'),
  # One chip goes by two names, which differ between versions of libtpu.
  'TPU v5e': _V5E,
  'TPU v5 lite': _V5E,
  'TPU v5': _V5P,
  'TPU v5p': _V5P,
  'TPU v6e': _V6E,
  'TPU v6 lite': _V6E,
}


def published(device_kind: str) -> Chip | None:
  """The published limits of a kind of device; None for one not in the table."""
  return _CHIPS.get(device_kind)
