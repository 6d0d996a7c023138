"""Time by part: scopes, compiled text, and a summary of known events."""

import random

import jax
import pytest

from txl_jax.benchmark.breakdown import Event, read_events, summarise
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
  lines {
    timestamp_ns: 100
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


def test_events_of_accelerators(tmp_path):
  path = tmp_path / 'a.xplane.pb'
  to_bytes = jax.profiler.ProfileData.text_proto_to_serialized_xspace
  path.write_bytes(to_bytes(TRACE))
  gpu, tpu = read_events(path, parts_by_instruction(HLO))
  assert gpu == [Event('mixed.2', 105, 2), Event('mine', 108, 3)]
  assert tpu == [Event('mine', 0, 4)]


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
