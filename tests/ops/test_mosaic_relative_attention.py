"""The kernels of training, interpreted, and as they are on a Hopper GPU."""

import functools
import math
import re

import interpreted_tiles
import jax
import jax.numpy as jnp
import kernel_checks as checks
import numpy as np
import pytest

from txl_jax.config import MeshConfig
from txl_jax.errors import InputError
from txl_jax.ops import (
  hopper,
  mosaic_dropout,
  mosaic_forward,
  mosaic_key_gradients,
  mosaic_products,
  mosaic_query_gradients,
  mosaic_ranges,
  mosaic_slant,
  mosaic_table_gradient,
  mosaic_tiles,
)
from txl_jax.ops import mosaic_relative_attention as lib
from txl_jax.ops.relative_attention import relative_attention
from txl_jax.parallel import mesh as mesh_lib

NAMES = ('q', 'k', 'v', 'table', 'w_r', 'u', 'v_bias')
SMALL = {
  # B, T, M, H, C, dropout rate, attention span
  'dropout': (2, 128, 64, 1, 64, 0.2, None),
  'an odd length and width': (1, 150, 70, 2, 41, 0.1, 90),
  'a wide head without memory': (2, 40, 0, 1, 128, 0.0, None),
  'a long memory and a span': (1, 64, 320, 1, 128, 0.0, 100),
  'one query': (1, 1, 64, 1, 64, 0.0, None),
  'one key for one query': (2, 1, 1, 2, 64, 0.2, 1),
}
LARGE = {
  f'{T} {M} {C} {rate}': (2, T, M, 2, C, rate, span)
  for T in (1, 8, 150, 192, 768)
  for M in (0, T, 5 * T)
  for C, rate, span in ((41, 0.0, None), (64, 0.2, T), (128, 0.1, None))
}


def _operands(case, dtype=jnp.bfloat16):
  B, T, M, H, C, _, span = case
  K, D = M + T, 32
  keys = iter(jax.random.split(jax.random.key(0), 8))

  def normal(*shape, scale=1.0):
    return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

  own = M + jnp.arange(T)
  first = jnp.maximum(own - span + 1, 0) if span else jnp.zeros(T, jnp.int32)
  first_BT = jnp.tile(first, (B, 1))
  first_BT = first_BT.at[0].max(min(M, 37))  # a memory that is partly filled
  if T > 70:
    first_BT = first_BT.at[-1, 70:].max(M + 70)  # a document begins
  return (
    *(normal(B, T, H, C), normal(B, K, H, C), normal(B, K, H, C)),
    *(normal(K, D), normal(D, H, C, scale=D**-0.5)),
    *(normal(H, C, scale=0.3), normal(H, C, scale=0.3)),
  ), (first_BT, normal(B, T, H, C))


def _results(case, implementation, dtype=jnp.bfloat16):
  """The output, and the gradients of all operands."""
  operands, (first_BT, gradient) = _operands(case)
  operands = tuple(x.astype(dtype) for x in operands)
  rate = case[5]

  @jax.jit
  def run(*operands):
    attend = functools.partial(
      relative_attention,
      dropout_rate=rate,
      dropout_seed=jnp.uint32(5) if rate else None,
      implementation=implementation,
    )
    out, back = jax.vjp(lambda *x: attend(*x, first_BT), *operands)
    return out, *back(gradient.astype(dtype))

  with jax.default_matmul_precision('highest'):
    return [np.asarray(x, np.float64) for x in run(*operands)]


def _errors(found, expected):
  # Gradients that cancel, as those of scores of a single key, have no size.
  least = 0.1 * np.linalg.norm(expected[0])
  return np.array(
    [
      np.linalg.norm(a - b) / max(np.linalg.norm(b), least)
      for a, b in zip(found, expected)
    ]
  )


@pytest.fixture
def interpreted(monkeypatch):
  interpreted_tiles.install(
    monkeypatch, mosaic_tiles, mosaic_slant, mosaic_dropout, mosaic_products
  )
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  kernels = (
    *(mosaic_forward, mosaic_key_gradients),
    *(mosaic_query_gradients, mosaic_table_gradient),
  )
  caches = *(module._kernel for module in kernels), lib._once_a_layer
  with interpreted_tiles.looking_for_races(*caches):
    yield


@checks.new_enough
@pytest.mark.slow
@pytest.mark.parametrize('case', SMALL.values(), ids=SMALL)
def test_values_and_gradients_interpreted(case, interpreted, capfd):
  # How a CPU rounds products of bfloat16 depends on the CPU.
  _assert_as_close_as_xla(case, slack=1.3)
  # No copy overwrites what may still be read, and nothing is read too soon.
  assert 'RACE DETECTED' not in capfd.readouterr().out


def _assert_as_close_as_xla(case, slack=1.15):
  expected = _results(case, 'reference', jnp.float32)
  found = _errors(_results(case, 'mosaic_gpu'), expected)
  by_xla = _errors(_results(case, 'xla'), expected)
  for name, ours, theirs in zip(('out', *NAMES), found, by_xla):
    assert ours < max(slack * theirs, 0.007), name


def test_blocks_of_queries_that_see_some_tiles_of_keys():
  tiles_IS3 = [[[0, 3, 0]], [[1, 4, 1]], [[1, 5, 1]], [[5, 5, 5]]]
  ranges = mosaic_ranges.query_ranges(jnp.array([tiles_IS3]), 6)
  expected = [[0, 1], [0, 3], [0, 3], [1, 3], [2, 3], [0, 0]]
  assert ranges.tolist() == [expected]


@checks.needs_hopper
@pytest.mark.parametrize('case', LARGE.values(), ids=LARGE)
def test_it_is_as_close_as_xla_to_float32(case):
  _assert_as_close_as_xla(case)


@checks.new_enough
@pytest.mark.parametrize('C, rate', [(64, 0.0), (128, 0.1)])
def test_it_compiles_for_an_h200(C, rate, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  B, T, M, H = 1, 768, 768, 1
  operands, (first_BT, _) = _operands((B, T, M, H, C, rate, None))

  def loss(*operands):
    return relative_attention(
      *(*operands, first_BT),
      dropout_rate=rate,
      dropout_seed=jnp.uint32(0),
      implementation='mosaic_gpu',
    ).sum()

  forward, both = (
    checks.text_for_an_h200(function, *operands)
    for function in (loss, jax.grad(loss, argnums=tuple(range(7))))
  )
  assert forward.count('custom_call @mosaic_gpu') == 1
  assert both.count('custom_call @mosaic_gpu') == 4
  # Arrays of the size of the scores: none forward, none in float32 backward.
  n_scores = B * H * T * (M + T)
  assert not _as_large_as(n_scores, forward)
  assert {kind for _, kind in _as_large_as(n_scores, both)} == {'bf16'}


def _as_large_as(size, text):
  """Shapes and types of the arrays in a program that have so many elements."""
  found = set(re.findall(r'tensor<((?:\d+x)+)(\w+)>', text))
  return {x for x in found if math.prod(map(int, x[0].split('x')[:-1])) >= size}


@checks.new_enough
def test_no_scores_are_kept_for_the_backward_pass():
  B, T, M, H, C = 2, 128, 128, 2, 64
  operands, (first_BT, _) = _operands((B, T, M, H, C, 0.1, None))
  shapes = jax.eval_shape(
    lambda *x: jax.vjp(
      lambda *y: lib.relative_attention(
        *y, first_BT, scale=1, dropout_rate=0.1, dropout_seed=jnp.uint32(0)
      ),
      *x,
    )[1],
    *operands,
  )
  largest = max(leaf.size for leaf in jax.tree.leaves(shapes))
  assert largest <= B * (M + T) * H * C < B * H * T * (M + T)


def test_each_shard_projects_the_table_for_itself(monkeypatch):
  """What is summed over devices is the gradient of W_R, not of its products."""
  B, T, M, H, C = case = 8, 64, 128, 2, 64

  def plain(static, q, k, v, r_HWC, *others):
    return jnp.tanh(q * r_HWC.sum(1)) + v.sum(1, keepdims=True)

  monkeypatch.setattr(lib, '_attend', plain)
  monkeypatch.setattr(lib, '_check', lambda *_: None)
  case = (*case, 0.0, None)
  operands, (first_BT, gradient) = _operands(case, jnp.float32)

  @jax.jit
  def run(q, k, v, table_KD, *weights):
    def attend(q, k, v, *weights):
      return lib.relative_attention(
        *(q, k, v, table_KD, *weights, first_BT),
        **dict(scale=1.0, dropout_rate=0.0, dropout_seed=None),
      )

    out, back = jax.vjp(attend, q, k, v, *weights)
    return out, *back(gradient)

  alone = run(*operands)
  mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  with mesh_lib.sharded(mesh):
    compiled = run.lower(*operands).compile()
  for ours, theirs in zip(compiled(*operands), alone, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  of_table = f'{T + M + mosaic_tiles.TILE},'
  text = compiled.as_text()
  summed = re.findall(r'= (.*) (?:all-reduce|reduce-scatter)\(', text)
  assert summed and not any(of_table in shapes for shapes in summed)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'dtype': jnp.float32}, "needs dtype 'bfloat16', found 'float32'"),
    ({'C': 136}, 'needs a d_head of at most 128, found 136'),
  ],
)
def test_what_it_cannot_do_is_refused(change, words, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  case = (1, 8, 0, 1, change.get('C', 64), 0.0, None)
  operands, (first_BT, _) = _operands(case, change.get('dtype', jnp.bfloat16))
  with pytest.raises(InputError, match=words):
    relative_attention(*operands, first_BT, implementation='mosaic_gpu')


def test_elsewhere_it_is_refused(monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: False)
  operands, (first_BT, _) = _operands((1, 8, 0, 1, 64, 0.0, None))
  with pytest.raises(InputError, match='capability 9.0 and jax 0.11 or newer'):
    relative_attention(*operands, first_BT, implementation='mosaic_gpu')
