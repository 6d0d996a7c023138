"""Relative attention on TPUs, the kernel interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from txl_jax.config import MeshConfig
from txl_jax.errors import InputError
from txl_jax.ops import splash_attention
from txl_jax.ops.relative_attention import relative_attention
from txl_jax.ops.sinusoids import Sinusoids
from txl_jax.parallel import mesh as mesh_lib

NAMES = ('q', 'k', 'v', 'w_r', 'u', 'v_bias')
CASES = {
  # T, M, C, D, attention span
  'a memory that is partly filled': (64, 128, 16, 32, None),
  'an odd length': (70, 51, 41, 64, None),
  'a span': (64, 100, 16, 32, 90),
  'no memory': (128, 0, 16, 48, None),
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  monkeypatch.setattr(splash_attention, 'INTERPRET', True)


def _operands(T, M, C, D, span, B=2, H=2):
  K = M + T
  keys = iter(jax.random.split(jax.random.key(0), 8))

  def normal(*shape, scale=1.0):
    return scale * jax.random.normal(next(keys), shape)

  own = M + jnp.arange(T)
  first = jnp.maximum(own - span + 1, 0) if span else jnp.zeros(T, jnp.int32)
  first_BT = jnp.tile(first, (B, 1))
  first_BT = first_BT.at[0].max(min(M, 37))
  first_BT = first_BT.at[1, 20:].max(M + 20).at[1, 50:].max(M + 50)
  keep_D = jax.random.bernoulli(next(keys), 0.9, (D,))
  return (
    *(normal(B, T, H, C), normal(B, K, H, C), normal(B, K, H, C)),
    normal(D, H, C, scale=2 * D**-0.5),
    *(normal(H, C, scale=0.3), normal(H, C, scale=0.3)),
  ), (first_BT, Sinusoids(keep_D / 0.9), normal(B, T, H, C))


def _results(implementation, case, dtype=jnp.float32):
  operands, (first_BT, positions, gradient) = _operands(*case)

  @jax.jit
  def run(q, k, v, *weights):
    def attend(q, k, v, *weights):
      return relative_attention(
        *(q, k, v, positions, *weights, first_BT),
        span=case[-1],
        implementation=implementation,
      )

    out, back = jax.vjp(attend, q, k, v, *weights)
    return out, *back(gradient.astype(out.dtype))

  found = run(*(x.astype(dtype) for x in operands))
  return [np.asarray(x, np.float64) for x in found]


def _errors(found, expected):
  return np.array(
    [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected)]
  )


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_it_is_the_reference(case):
  found, expected = (_results(x, case) for x in ('splash', 'reference'))
  errors = dict(zip(('out', *NAMES), _errors(found, expected), strict=True))
  assert max(errors.values()) < 2e-5, errors


def test_in_bfloat16_it_is_as_close_as_xla():
  case = CASES['a span']
  expected = _results('reference', case)
  errors = {}
  for implementation in ('splash', 'xla'):
    found = _results(implementation, case, jnp.bfloat16)
    errors[implementation] = np.array(
      [
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(found, expected)
      ]
    )
  assert (errors['splash'] < 1.5 * errors['xla']).all(), errors


@pytest.mark.parametrize('why', ['a plain table', 'dropout'])
def test_what_it_cannot_do_is_refused(why):
  operands, (first_BT, positions, _) = _operands(*CASES['no memory'])
  dropout = {}
  if why == 'dropout':
    dropout = {'dropout_rate': 0.1, 'dropout_seed': jnp.uint32(0)}
  else:
    positions = positions.table(128, jnp.float32)
  with pytest.raises(InputError, match="'splash' needs a table of whole sinu"):
    relative_attention(
      *(*operands[:3], positions, *operands[3:], first_BT),
      implementation='splash',
      **dropout,
    )


# There are 2 rows and 2 heads: rows are divided, then heads.
@pytest.mark.parametrize('data, tensor', [(2, 4), (4, 2)])
def test_on_a_mesh_it_is_the_same(data, tensor):
  case = CASES['a memory that is partly filled']
  expected = _results('splash', case)
  mesh = mesh_lib.make_mesh(MeshConfig(data, -1, tensor))
  with mesh_lib.sharded(mesh):
    found = _results('splash', case)
  assert _errors(found, expected).max() < 1e-6
