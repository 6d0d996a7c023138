"""Exchanges are found in the text of compiled programs, and counted."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from txl_jax.benchmark.collectives import collectives
from txl_jax.config import MeshConfig
from txl_jax.parallel.mesh import make_mesh

SHAPE = {'data': 2, 'fsdp': 4, 'tensor': 1}
WHOLE = 64 * 32 * 4  # bytes


def _found(body, in_spec, out_spec):
  """The exchanges of a program on 2 x 4 devices, which reads [64, 32]."""
  mesh = make_mesh(MeshConfig(2, 4, 1))
  run = jax.shard_map(
    body, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False
  )
  x = jnp.zeros((64, 32), jnp.float32)
  text = jax.jit(run).lower(x).compile().as_text()
  return collectives(text, SHAPE)


def test_a_sum_over_one_axis():
  (found,) = _found(lambda x: jax.lax.psum(x, 'fsdp'), P(), P())
  assert (found.kind, found.axes, found.count) == ('all-reduce', ('fsdp',), 1)
  assert found.payload == WHOLE
  assert found.sent == 2 * 3 / 4 * WHOLE


def test_a_loop_counts_as_often_as_it_runs():
  def body(x):
    def step(x, _):
      return jnp.sin(jax.lax.psum(x, 'data')), None

    return jax.lax.scan(step, x, None, length=5)[0]

  (found,) = _found(body, P(), P())
  assert (found.axes, found.count) == (('data',), 5)
  assert found.payload == 5 * WHOLE and found.sent == 5 * WHOLE


def test_gathering_and_scattering():
  (found,) = _found(
    lambda x: jax.lax.all_gather(x, 'fsdp', tiled=True), P('fsdp'), P()
  )
  assert (found.kind, found.payload) == ('all-gather', WHOLE)
  assert found.sent == 3 / 4 * WHOLE
  (found,) = _found(
    lambda x: jax.lax.psum_scatter(x, ('data', 'fsdp'), tiled=True),
    P(),
    P(('data', 'fsdp')),
  )
  assert found.axes == ('data', 'fsdp')
  # Where there is no reduce-scatter, an all-reduce stands for it.
  assert found.payload == WHOLE


def test_nothing_is_exchanged():
  assert _found(lambda x: x * 2, P('data'), P('data')) == []


@pytest.mark.parametrize(
  'groups, axes',
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', ('fsdp',)),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', ('data',)),
    ('replica_groups=[1,8]<=[8]', ('data', 'fsdp')),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ('fsdp',)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ('data', 'fsdp')),
    ('replica_groups={}', ('data', 'fsdp')),
  ],
)
def test_all_ways_to_write_groups(groups, axes):
  text = '\n'.join(
    [
      'ENTRY %main.1 (x: bf16[8,4]) -> bf16[8,4] {',
      '  %x = bf16[8,4]{1,0} parameter(0)',
      '  ROOT %r = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, f32[3]{0}) '
      f'all-reduce(%x, %y), channel_id=1, {groups}, to_apply=%add',
      '}',
    ]
  )
  (found,) = collectives(text, SHAPE)
  assert found.axes == axes
  assert found.payload == 8 * 4 * 2 + 3 * 4


def test_a_loop_whose_condition_alone_says_how_often_it_runs():
  text = """HloModule step

%below (p: (s32[], f32[64])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(7)
  %p = (s32[], f32[64]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n.1), direction=LT
}

%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %sum = f32[64]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (a: f32[64]) -> f32[64] {
  %w = (s32[], f32[64]) while(%t), condition=%below, body=%body
}
"""
  (found,) = collectives(text, {'data': 4, 'fsdp': 1, 'tensor': 1})
  assert found.count == 7
  assert found.payload == 7 * 64 * 4
