"""What the device reaches at its best: one large matrix product."""

import statistics
import time

import jax
import jax.numpy as jnp

# Rows and columns; elsewhere than on a CPU large enough for full speed.
SIZE = {'cpu': 512}
OTHERWISE = 8192


def matrix_product_flops(device: jax.Device) -> float:
  """Operations a second of a bfloat16 matrix product on a device.

  The median of five rounds, in each of which ten products are queued, so that
  the time to launch one is hidden.
  """
  n = SIZE.get(device.platform, OTHERWISE)
  # Random numbers: zeros need less power and run faster.
  a, b = (
    jax.device_put(jax.random.normal(jax.random.key(i), (n, n)), device).astype(
      jnp.bfloat16
    )
    for i in range(2)
  )
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  queued, seconds = 10, []
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready([product(a, b) for _ in range(queued)])
    seconds.append(time.perf_counter() - began)
  return queued * 2 * n**3 / statistics.median(seconds)
