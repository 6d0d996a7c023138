"""What attention moves through a TPU's main memory, by its compiler's count."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from txl_jax.ops.reference_attention import attend, shift
from txl_jax.ops.relative_attention import relative_attention
from txl_jax.ops.sinusoids import Sinusoids
from txl_jax.parallel.topology import topology_devices

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs libtpu'
  ),
]
# The 12-layer enwik8 model, 16 rows.
B, T, M, H, C, D = 16, 512, 512, 8, 64, 512


def _naive(q_BTHC, k_BKHC, v_BKHC, w_r_DHC, u_HC, v_bias_HC):
  """Scores in float32, shifted by reshaping, differentiated by JAX."""
  table_KD = Sinusoids(jnp.ones(D)).table(M + T, jnp.bfloat16)
  r_KHC = jnp.einsum('kd,dhc->khc', table_KD, w_r_DHC)
  wide = dict(preferred_element_type=jnp.float32)
  content = jnp.einsum('bthc,bkhc->bhtk', q_BTHC + u_HC, k_BKHC, **wide)
  position = jnp.einsum('bthc,khc->bhtk', q_BTHC + v_bias_HC, r_KHC, **wide)
  scores = (content + shift(position)) / math.sqrt(C)
  return attend(scores, v_BKHC, _first_keys())


def _splash(*operands):
  return relative_attention(
    *operands[:3],
    Sinusoids(jnp.ones(D)),
    *operands[3:],
    _first_keys(),
    implementation='splash',
  )


def _first_keys():
  return jnp.zeros((B, T), jnp.int32)


def _traffic(attention) -> float:
  """Bytes of a forward and a backward pass on one chip of a v5e."""
  mesh = Mesh(topology_devices('v5e:2x2')[:1], 'x')
  operands = [
    jax.ShapeDtypeStruct(
      shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    for shape in (
      *((B, T, H, C), (B, M + T, H, C), (B, M + T, H, C)),
      *((D, H, C), (H, C), (H, C)),
    )
  ]

  def loss(*operands):
    return attention(*operands).astype(jnp.float32).sum()

  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(6))))
    compiled = gradients.trace(*operands).lower().compile()
  return compiled.cost_analysis()['bytes accessed']


def test_the_kernel_moves_less_than_a_third_of_naive_attention():
  assert _traffic(_splash) < 0.3 * _traffic(_naive)
