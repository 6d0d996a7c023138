"""Time by part: scopes, compiled text, and a summary of known events."""

import pathlib
import random

import jax
import pytest

from txl_jax.benchmark.breakdown import Event, read_events, summarise
from txl_jax.benchmark.collectives import collective_names
from txl_jax.benchmark.parts import part_of, parts_by_instruction

STACK = 'jit(train_step)/jvp(jit(_score))/TransformerXL/while/body/layers'
HLO = """HloModule jit_train_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %a = f32[8]{0} multiply(%p, %p), metadata={op_name="jit(f)/softmax/mul"}
  %b = f32[8]{0} add(%p, %p), metadata={op_name="jit(f)/softmax/add"}
  %c = f32[8]{0} add(%p, %p), metadata={op_name="jit(f)/optimizer/add"}
  ROOT %d = f32[8]{0} add(%a, %b), metadata={op_name="jit(f)/add"}
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %mixed.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %own.3 = f32[8]{0} fusion(%x), calls=%fused, metadata={op_name="embedding/a"}
  %loop = (f32[8]{0}, s32[]) while(%x), metadata={op_name="jit(f)/attention"}
  %mine = f32[8]{0:T(8)} custom-call(%x), metadata={op_name="layers/attention"}
  ROOT %copy.4 = f32[8]{0} copy(%x)
}
"""

# Asynchronous ones may be wrapped, in a computation of their own.
EXCHANGES = """HloModule jit_train_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner.1 = f32[2]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

%copied (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%q)
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %all-reduce-start.3 = f32[8]{0} all-reduce-start(%x), to_apply=%add
  %all-reduce-done.3 = f32[8]{0} all-reduce-done(%all-reduce-start.3)
  %both = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}
  %scatter = ((f32[8]{0}), f32[2]{0}) async-start(%x), calls=%wrapped
  %other = ((f32[8]{0}), f32[8]{0}) async-start(%x), calls=%copied
  %sent = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %turned = (f32[2]{0}, f32[2]{0}) all-to-all(%x, %x), metadata={op_name="a"}
  ROOT %gather.4 = f32[8]{0} gather(%x), metadata={op_name="jit(f)/all-reduce"}
}
"""

# A GPU has the instruction beside the kernel's event, a TPU as its name.
TRACE = """
planes {
  name: "/host:CPU"
  event_metadata { key: 1 value { id: 1 name: "copy.4" } }
  lines { events { metadata_id: 1 duration_ps: 9000 } }
}
planes {
  name: "/device:GPU:0"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "mine" } }
  event_metadata { key: 1 value { id: 1 name: "nvjet_tst_128x64" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2H" } }
  event_metadata { key: 3 value { id: 3 name: "ncclDevKernel_AllReduce" } }
  lines {
    timestamp_ns: 100
    events {
      metadata_id: 3 offset_ps: 1000 duration_ps: 2000
      stats { metadata_id: 1 str_value: "all-reduce.149.1" }
    }
    events {
      metadata_id: 1 offset_ps: 5000 duration_ps: 2000
      stats { metadata_id: 1 str_value: "mixed.2" }
    }
    events {
      metadata_id: 1 offset_ps: 8000 duration_ps: 3000
      stats { metadata_id: 1 ref_value: 2 }
    }
    events { metadata_id: 2 duration_ps: 7000 }
  }
}
planes {
  name: "/device:TPU:0"
  event_metadata { key: 1 value { id: 1 name: "%mine = f32[8] fusion(%x)" } }
  event_metadata { key: 2 value { id: 2 name: "%loop = f32[8] while(%x)" } }
  lines {
    events { metadata_id: 2 duration_ps: 9000 }
    events { metadata_id: 1 duration_ps: 4000 }
  }
}
"""

# The devices of a CPU share a plane.
TRACE_OF_CPU = """
planes {
  name: "/host:CPU"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "device_ordinal" } }
  event_metadata { key: 1 value { id: 1 name: "mine" } }
  lines {
    events {
      metadata_id: 1 duration_ps: 4000
      stats { metadata_id: 1 str_value: "mine" }
      stats { metadata_id: 2 int64_value: 0 }
    }
    events {
      metadata_id: 1 duration_ps: 5000
      stats { metadata_id: 1 str_value: "mine" }
      stats { metadata_id: 2 int64_value: 1 }
    }
  }
  lines {
    events {
      metadata_id: 1 offset_ps: 6000 duration_ps: 3000
      stats { metadata_id: 1 str_value: "mine" }
      stats { metadata_id: 2 int64_value: 0 }
    }
  }
}
"""


@pytest.mark.parametrize(
  'scopes, part',
  [
    (f'{STACK}/attention/bthc,bkhc->bhtk/dot_general', 'attention'),
    (f'{STACK}/attention/jit(softmax)/exp', 'attention'),
    (f'transpose({STACK})/feed_forward/Dropout_0/mul', 'feed_forward'),
    ('jit(train_step)/transpose(jvp(softmax))/dot_general', 'softmax'),
    ('jit(block)/while/body/TransformerXL/softmax.log_probs/exp', 'softmax'),
    ('jit(train_step)/optimizer/add;jit(train_step)', 'optimizer'),
    (f'{STACK}/attention_norm/mul', 'rest'),
    (f'{STACK}/Dropout_0/jit(_bernoulli)/lt', 'rest'),
    ('', 'rest'),
  ],
)
def test_parts_of_scopes(scopes, part):
  assert part_of(scopes) == part


def test_parts_of_a_compiled_text():
  parts = parts_by_instruction(HLO)
  outer = {name: parts[name] for name in parts if len(name) > 1}
  assert outer == {
    'mixed.2': 'softmax',  # by majority
    'own.3': 'embedding',
    'mine': 'attention',
    'copy.4': 'rest',
  }
  assert 'loop' not in parts


def test_collectives_by_name():
  assert collective_names(EXCHANGES) == {
    *('all-reduce-start.3', 'all-reduce-done.3', 'both', 'scatter', 'inner.1'),
    *('sent', 'turned'),
  }
  assert collective_names(EXCHANGES) <= parts_by_instruction(EXCHANGES).keys()
  assert collective_names(HLO) == set()


def _events(folder: pathlib.Path, trace: str) -> list[list[Event]]:
  path = folder / 'a.xplane.pb'
  to_bytes = jax.profiler.ProfileData.text_proto_to_serialized_xspace
  path.write_bytes(to_bytes(trace))
  return read_events(path, parts_by_instruction(HLO))


def test_events_of_accelerators(tmp_path):
  gpu, tpu = _events(tmp_path, TRACE)
  # The collective's name is not that of an instruction of the program.
  collective = Event('all-reduce.149.1', 101, 2)
  assert gpu == [collective, Event('mixed.2', 105, 2), Event('mine', 108, 3)]
  assert tpu == [Event('mine', 0, 4)]


def test_events_of_the_devices_of_a_cpu(tmp_path):
  first, second = _events(tmp_path, TRACE_OF_CPU)
  assert first == [Event('mine', 0, 4), Event('mine', 6, 3)]
  assert second == [Event('mine', 0, 5)]


def test_shares_of_known_events():
  parts = {'a': 'attention', 's': 'softmax', 'x': 'rest'}
  events = [
    Event('a', 0, 40),
    Event('s', 10, 20),  # beside the first
    Event('a', 60, 20),
    Event('x', 80, 20),
  ]
  random.Random(0).shuffle(events)
  shares = summarise([events, [Event('a', 7, 100)]], parts)
  assert shares['attention'] == 0.8
  assert shares['softmax'] == shares['rest'] == 0.1
  # 20 of 100 on one device, nothing on the other.
  assert shares['idle'] == pytest.approx(0.1)
  assert shares['feed_forward'] == shares['optimizer'] == 0


def test_parallel_events_leave_no_idle_time():
  many = [Event('a', i % 50, 10) for i in range(0, 500, 7)]
  assert summarise([many], {'a': 'rest'})['idle'] == 0


def test_shares_of_collectives():
  parts = {'a': 'attention', 's': 'softmax', 'r': 'rest', 'g': 'attention'}
  first = [
    Event('a', 0, 30),
    Event('r', 20, 40),  # 10 hidden by the first, 20 by the next
    Event('g', 30, 5),  # at the same time as another
    Event('s', 40, 20),
    Event('a', 70, 30),
    Event('r', 100, 100),  # hidden by nothing
  ]
  random.Random(0).shuffle(first)
  shares = summarise([first, [Event('a', 7, 100)]], parts, {'r', 'g'})
  # Collectives are in no part: 160 of attention, 20 of softmax.
  assert shares['attention'] == pytest.approx(160 / 180, abs=1e-4)
  assert shares['softmax'] == pytest.approx(20 / 180, abs=1e-4)
  assert shares['rest'] == 0
  # Of 200, on the first of two devices.
  assert shares['idle'] == pytest.approx(10 / 200 / 2)
  assert shares['exchange'] == pytest.approx(140 / 200 / 2)
  assert shares['exposed'] == pytest.approx((10 + 100) / 200 / 2)


def test_a_single_device_exchanges_nothing():
  shares = summarise([[Event('a', 0, 1)]], {'a': 'attention'})
  assert shares['idle'] == 0
  assert not {'exchange', 'exposed'} & shares.keys()
