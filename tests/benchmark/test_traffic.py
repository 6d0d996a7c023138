"""The traffic of main memory is counted in the text of compiled programs."""

import jax
import jax.numpy as jnp

from txl_jax.benchmark.traffic import traffic

WHOLE = 64 * 256 * 4  # bytes
ON_CHIP = """
HloModule row_and_sum

%fused (param_0: f32[8,128], param_1: s32[]) -> f32[1,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,128]{1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero)
}

ENTRY %main (x: f32[8,128], i: s32[]) -> (f32[1,128], f32[8,128]) {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,128]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused
  %begun = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%begun)
  %sum = f32[8,128]{1,0:T(8,128)} add(%near, %near)
  ROOT %both = (f32[1,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}) tuple(%row, %sum)
}
"""  # noqa: E501


def _found(function, *operands):
  return traffic(jax.jit(function).lower(*operands).compile().as_text())


def _x():
  return jnp.zeros((64, 256))


def test_what_is_fused_is_read_and_written_once():
  assert _found(lambda x: jnp.sin(x) * 2 + 1, _x()) == 2 * WHOLE


def test_a_loop_reads_and_writes_a_row_at_a_time():
  def rows(x):
    return jax.lax.map(lambda row: jnp.sin(row) * row, x)

  # If each of the 64 turns moved the whole, it would be 128 of them.
  assert 2 * WHOLE <= _found(rows, _x()) < 6 * WHOLE


def test_a_loop_counts_as_often_as_it_runs():
  def times(n):
    return _found(
      lambda x: jax.lax.fori_loop(0, n, lambda _, y: jnp.sin(y @ y), x),
      jnp.zeros((64, 64)),
    )

  each = (times(20) - times(10)) / 10
  assert 3 * 64 * 64 * 4 <= each <= 6 * 64 * 64 * 4


def test_what_stays_on_the_chip_does_not_count():
  index, row, copied, added = 4, 512, 4096, 4096
  assert traffic(ON_CHIP) == index + row + copied + added
