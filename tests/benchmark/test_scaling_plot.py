"""docs/make_gpu_scaling.py: which lines belong together, and a picture."""

import importlib.util
import json
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'docs' / 'make_gpu_scaling.py'


@pytest.fixture(scope='module')
def plot():
  spec = importlib.util.spec_from_file_location('make_gpu_scaling', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _lines(counts: list[int], axis: str, scaling: str) -> list[str]:
  """Made up; on each further device a tenth is lost."""
  lines = []
  for n in counts:
    mesh = {'data': 1, 'fsdp': 1, 'tensor': 1, axis: n}
    efficiency = 1 - (n - counts[0]) / 10
    line = {
      'config': 'experiments/enwik8_base.py',
      'dtype': 'bfloat16',
      'batch': 6 * n if scaling == 'weak' else 6,
      'tokens_per_second': 1000 * n * efficiency,
      'mesh': mesh,
      'devices': n,
      'scaling': scaling,
      'efficiency': efficiency,
    }
    lines.append(json.dumps(line))
  return lines


@pytest.mark.parametrize('counts', [[1, 2], [1, 2, 4, 8], [4, 2]])
def test_a_line_for_each_command(plot, counts, tmp_path, monkeypatch):
  lines = _lines(counts, 'data', 'weak') + _lines(counts, 'data', 'strong')
  lines += _lines(counts, 'fsdp', 'strong')
  found = plot.commands('\n'.join(lines))
  for own in found:
    assert [line['devices'] for line in own] == sorted(counts)
  labels = [plot.label(own) for own in found]
  assert labels == [
    'enwik8_base, data, 6 rows a device',
    'enwik8_base, data, 6 rows',
    'enwik8_base, fsdp, 6 rows',
  ]
  monkeypatch.setattr(plot, 'PICTURE', tmp_path / 'a.svg')
  (tmp_path / 'lines.jsonl').write_text('\n'.join(lines))
  plot.main(str(tmp_path / 'lines.jsonl'))
  drawn = (tmp_path / 'a.svg').read_text()
  assert drawn.count('<!-- enwik8_base') == len(found)
  assert '<!-- efficiency, % -->' in drawn
