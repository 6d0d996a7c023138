"""The report of a run: what it says, and that it needs nothing but itself."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from txl_jax.errors import InputError
from txl_jax.report import plots
from txl_jax.report.page import write_report

VOID = {'meta', 'br', 'hr', 'img', 'link', 'input'}
SAMPLE = 'os\n<script>alert("x")</script> & \x00 {braces}'


class Page(html.parser.HTMLParser):
  """Checks that elements nest; keeps attributes and text."""

  def __init__(self, path):
    super().__init__()
    self.open, self.tags, self.attributes, self.texts = [], [], [], []
    self.feed(path.read_text(encoding='utf-8'))
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.texts.append(data)

  @property
  def text(self):
    return ''.join(self.texts)


def train_line(step, loss):
  return {
    'step': step,
    'split': 'train',
    'loss': loss,
    'bpc': loss / math.log(2),
    'learning_rate': 1e-3,
    'gradient_norm': 0.5,
    'tokens_per_second': 20_000.0 + step,
    'tokens': 8192 * step,
  }


def score_line(step, split, loss):
  return {
    'step': step,
    'split': split,
    'loss': loss,
    'bpc': loss / math.log(2),
    'tokens': 654_321,
  }


LINES = [
  *(train_line(step, 1.5 + 90 / step) for step in range(10, 210, 10)),
  *(score_line(step, 'validation', 1.6 + 9 / step) for step in (100, 200)),
  score_line(200, 'test', 1.7),
]
RUN = {
  'txl_jax': '0.1.0',
  'devices': '1 x cpu',
  'parameters': 1_234_567,
  'corpus': {
    'name': 'a <b> corpus',
    'fingerprint': 'ab12',
    'train': {'tokens': 819_200, 'documents': 620},
  },
}


def write_lines(workdir, lines):
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (workdir / 'metrics.jsonl').write_text(text)


@pytest.fixture
def workdir(tmp_path):
  workdir = tmp_path / 'my-run'
  workdir.mkdir()
  config = {'model': {'n_layers': 6, 'cutoffs': []}, 'train': {'steps': 400}}
  samples = [{'prompt': 'import ', 'text': SAMPLE}]
  (workdir / 'config.json').write_text(json.dumps(config))
  (workdir / 'run.json').write_text(json.dumps(RUN))
  (workdir / 'samples.json').write_text(json.dumps(samples))
  write_lines(workdir, LINES)
  return workdir


def svgs(path):
  return re.findall('<svg.*?</svg>', path.read_text('utf-8'), re.DOTALL)


def test_the_page_tells_the_numbers(workdir):
  path = write_report(workdir)
  assert path == workdir / 'report.html'
  assert not list(workdir.glob('*.part'))
  text = Page(path).text
  assert f'{1.7 / math.log(2):.3f}' in text  # test
  assert f'{1.645 / math.log(2):.3f}' in text  # the newest validation
  assert '654,321 tokens scored' in text
  assert '1.23M' in text and '1,234,567' in text
  assert '2.00 times the text' in text
  assert '20.1k' in text  # the median speed
  assert 'of 400, 50%' in text
  assert 'a <b> corpus · fingerprint ab12' in text


def test_samples_are_escaped(workdir):
  page = Page(write_report(workdir))
  assert 'script' not in page.tags
  assert 'import ' + SAMPLE.replace('\x00', '␀') in page.text


def test_nothing_is_loaded_from_elsewhere(workdir):
  path = write_report(workdir)
  for name, value in Page(path).attributes:
    if name in ('src', 'href', 'xlink:href'):
      assert value.startswith('#')
    assert name.startswith('xmlns') or '://' not in (value or '')
  text = re.sub(r'xmlns(:\w+)?="[^"]*"', '', path.read_text('utf-8'))
  assert '://' not in text and '@import' not in text


def test_plots_are_xml_with_text_and_ids_of_their_own(workdir):
  drawn = svgs(write_report(workdir))
  assert len(drawn) == 5
  ids = []
  for svg in drawn:
    own = {node.get('id') for node in ElementTree.fromstring(svg).iter()}
    used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert used and own.issuperset(used)
    assert '<text' in svg and 'var(--' in svg
    assert not re.search('#0[1-6]{5}', svg)  # every stand-in was replaced
    ids += own - {None}
  assert len(ids) == len(set(ids))


def test_the_page_is_a_function_of_the_folder(workdir):
  first = write_report(workdir).read_bytes()
  assert write_report(workdir).read_bytes() == first


def test_the_first_steps_do_not_set_the_range():
  points = [(0, 100.0), (1, 50.0), *((step, 2.0) for step in range(10, 100))]
  low, high = plots._limits([points, [(99, 1.0)]])
  assert 0.5 < low < 1 and 2 < high < 2.5


def test_word_models_have_perplexities(workdir):
  lines = [{k: v for k, v in line.items() if k != 'bpc'} for line in LINES]
  write_lines(workdir, lines)
  text = Page(write_report(workdir)).text
  assert f'{math.exp(1.7):.2f}' in text
  assert 'test perplexity' in text and 'Nats per token' in text
  assert 'bpc' not in text and 'Bits per character' not in text


def test_a_run_that_has_begun_has_a_page(workdir):
  (workdir / 'samples.json').unlink()
  (workdir / 'run.json').unlink()
  write_lines(workdir, [])
  text = Page(write_report(workdir)).text
  assert 'No step is logged yet' in text and 'Samples' not in text
  write_lines(workdir, [LINES[0], {'step': 11, 'loss': None}])
  text = Page(write_report(workdir)).text
  assert 'not scored yet' in text and 'validation bpc' in text


def test_values_that_are_not_finite_are_left_out(workdir):
  before = svgs(write_report(workdir))
  diverged = {'step': 210, 'split': 'train', 'bpc': math.nan}
  write_lines(workdir, [*LINES, diverged, score_line(210, 'test', math.inf)])
  path = write_report(workdir)
  assert svgs(path) == before
  assert f'{1.7 / math.log(2):.3f}' in Page(path).text


def test_a_line_that_is_being_written_is_left_out(workdir):
  before = write_report(workdir).read_bytes()
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 3')
  assert write_report(workdir).read_bytes() == before


@pytest.mark.parametrize('bad', ['{"step": 3', '[1]', '{"loss": 1}'])
def test_a_bad_line_is_named(workdir, bad):
  metrics = workdir / 'metrics.jsonl'
  metrics.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
  with pytest.raises(InputError, match=r'metrics\.jsonl, line 2: '):
    write_report(workdir)
  assert not (workdir / 'report.html').exists()


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl'])
def test_a_folder_that_is_no_work_directory(workdir, name):
  (workdir / name).unlink()
  with pytest.raises(InputError, match=f'my-run is no work.*has no {name}'):
    write_report(workdir)


@pytest.mark.parametrize('name', ['config.json', 'run.json', 'samples.json'])
@pytest.mark.parametrize('bad', ['{"a":\n oops', '3', '[3]', '\ufeff\ud800'])
def test_a_bad_file_is_named(workdir, name, bad):
  (workdir / name).write_bytes(bad.encode('utf-8', 'surrogatepass'))
  with pytest.raises(InputError, match=name.replace('.', r'\.')):
    write_report(workdir)
