"""One self-contained HTML page for a finished or running training run."""

import dataclasses
import html
import importlib.resources
import json
import math
import os
import pathlib
import statistics
from typing import Any

from txl_jax.errors import InputError
from txl_jax.report import plots
from txl_jax.report.plots import finite, short_number

# Bytes that a model may write and a page cannot show, as their pictures.
CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in '\t\n'}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a work directory says about its run."""

  name: str  # of the work directory
  config: dict  # section -> field -> value
  facts: dict  # versions, devices, parameters, corpus
  lines: list[dict]  # the metrics
  samples: list[dict]  # with `prompt` and `text`

  @property
  def in_bits(self) -> bool:
    """Whether bits per character are told; else perplexity is."""
    told = any(finite(line.get('bpc')) is not None for line in self.lines)
    return told and self.facts.get('measure') != 'ppl'

  def points(self, split: str, key: str) -> plots.Points:
    """Steps and finite values of a metric of a split."""
    lines = [line for line in self.lines if line.get('split') == split]
    pairs = [(line['step'], finite(line.get(key))) for line in lines]
    return sorted((step, value) for step, value in pairs if value is not None)

  def newest(self, split: str, key: str) -> Any:
    """The last value of a metric of a split, None without any."""
    return next((value for _, value in reversed(self.points(split, key))), None)


def write_report(workdir: pathlib.Path) -> pathlib.Path:
  """Writes `report.html`, all of it or nothing.

  Args:
    workdir: the work directory of a run, with at least `config.json` and
      `metrics.jsonl`; `run.json` and `samples.json` may be missing.

  Returns:
    The path of the page.

  Raises:
    InputError: if the folder is no work directory, or naming the file (and
      the line) that is not as expected.
  """
  page = _page(_read(workdir))
  path = workdir / 'report.html'
  draft = path.with_name(path.name + '.part')
  try:
    draft.write_text(page, encoding='utf-8', errors='replace')
    os.replace(draft, path)
  except OSError as error:
    raise InputError(f'cannot write {path}: {error.strerror}') from error
  return path


def _read(workdir: pathlib.Path) -> _Run:
  for name in ('config.json', 'metrics.jsonl'):
    if not (workdir / name).is_file():
      raise InputError(f'{workdir} is no work directory: it has no {name}')
  return _Run(
    name=workdir.resolve().name,
    config=_read_json(workdir / 'config.json', {}),
    facts=_read_json(workdir / 'run.json', {}),
    lines=_read_metrics(workdir / 'metrics.jsonl'),
    samples=_read_json(workdir / 'samples.json', []),
  )


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


def _read_json(path: pathlib.Path, default: Any) -> Any:
  """The objects in a file, of the default's type; the default without it."""
  if not path.exists():
    return default
  try:
    value = json.loads(_read_text(path))
  except json.JSONDecodeError as error:
    raise InputError(f'{path}, line {error.lineno}: {error.msg}') from error
  kind = 'a list of objects' if isinstance(default, list) else 'an object'
  items = value if isinstance(value, list) else [value]
  same = isinstance(value, type(default))
  if not (same and all(isinstance(item, dict) for item in items)):
    raise InputError(f'{path}: expected {kind}')
  return value


def _read_metrics(path: pathlib.Path) -> list[dict]:
  """All lines, but for a last one that is being written."""
  lines = _read_text(path).split('\n')[:-1]
  return [_parse(path, i, line) for i, line in enumerate(lines, 1)]


def _parse(path: pathlib.Path, number: int, line: str) -> dict:
  try:
    value = json.loads(line)
  except json.JSONDecodeError:
    value = None
  if not isinstance(value, dict) or finite(value.get('step')) is None:
    raise InputError(
      f'{path}, line {number}: expected a JSON object with a step, found '
      f'{line[:60]!r}'
    )
  return value


def _page(run: _Run) -> str:
  makers = (_heading, _headline, _curves, _samples, _corpus, _configuration)
  style = importlib.resources.files('txl_jax.report') / 'style.css'
  return PAGE.format(
    title=_text(run.name),
    style=style.read_text(encoding='utf-8'),
    body='\n'.join(make(run) for make in makers),
  )


def _heading(run: _Run) -> str:
  shape = (
    ('{} layers', _at(run.config, 'model', 'n_layers')),
    ('width {}', _at(run.config, 'model', 'd_model')),
    ('memory {}', _at(run.config, 'model', 'memory_length')),
    ('{}', _at(run.facts, 'corpus', 'name')),
    ('{}', run.facts.get('devices')),
  )
  words = [form.format(value) for form, value in shape if value is not None]
  note = f'<p class="note">{_text(" · ".join(words))}</p>'
  return f'<h1>{_text(run.name)}</h1>\n{note}'


def _headline(run: _Run) -> str:
  count = finite(run.facts.get('parameters'))
  seen = run.newest('train', 'tokens')
  text = finite(_at(run.facts, 'corpus', 'train', 'tokens'))
  passes = f'{seen / text:,.2f} times the text' if seen and text else ''
  speeds = [speed for _, speed in run.points('train', 'tokens_per_second')]
  speed = statistics.median(speeds) if speeds else None
  rows = (
    _score(run, 'test'),
    _score(run, 'validation'),
    ('parameters', short_number(count), _count(count)),
    ('tokens seen', short_number(seen), passes),
    ('tokens per second', short_number(speed), 'median'),
    _steps(run),
  )
  cells = (
    f'<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd>'
    f'<dd class="note">{_text(note)}</dd></div>'
    for name, value, note in rows
  )
  return '<dl class="headline">\n' + '\n'.join(cells) + '\n</dl>'


def _score(run: _Run, split: str) -> tuple[str, str, str]:
  unit = 'bpc' if run.in_bits else 'perplexity'
  value = run.newest(split, 'bpc' if run.in_bits else 'loss')
  if value is None:
    return f'{split} {unit}', short_number(None), 'not scored yet'
  perplexity = math.exp(min(value, 700.0))  # more overflows
  shown = f'{value:.3f}' if run.in_bits else f'{perplexity:,.2f}'
  tokens = run.newest(split, 'tokens')
  return f'{split} {unit}', shown, f'{tokens:,} tokens scored' if tokens else ''


def _steps(run: _Run) -> tuple[str, str, str]:
  step = max((line['step'] for line in run.lines), default=0)
  total = finite(_at(run.config, 'train', 'steps'))
  if not total:
    return 'steps', f'{step:,}', ''
  done = 'finished' if step >= total else f'{step / total:.0%}'
  return 'steps', f'{step:,}', f'of {total:,}, {done}'


def _curves(run: _Run) -> str:
  if not run.lines:
    return '<h2>Loss</h2>\n<p class="note">No step is logged yet.</p>'
  key = 'bpc' if run.in_bits else 'loss'
  unit = 'Bits per character' if run.in_bits else 'Nats per token'
  splits = ('train', 'validation', 'test')
  loss = plots.loss_figure({s: run.points(s, key) for s in splits}, unit)
  names = ('learning_rate', 'gradient_norm', 'tokens_per_second')
  small = '\n'.join(
    plots.small_figure(
      name.replace('_', ' ').capitalize(),
      run.points('train', name),
      settled=name == 'gradient_norm',
    )
    for name in names
    if run.points('train', name)
  )
  return f'<h2>Loss</h2>\n{loss}\n<div class="small">\n{small}\n</div>'


def _samples(run: _Run) -> str:
  if not run.samples:
    return ''
  texts = '\n'.join(
    f'<pre><b>{_text(sample.get("prompt", ""))}</b>'
    f'{_text(sample.get("text", ""))}</pre>'
    for sample in run.samples
  )
  note = '<p class="note">The prompt in bold, then what the model wrote.</p>'
  return f'<h2>Samples</h2>\n{note}\n{texts}'


def _corpus(run: _Run) -> str:
  corpus = run.facts.get('corpus')
  if not isinstance(corpus, dict):
    return ''
  splits = {k: v for k, v in corpus.items() if isinstance(v, dict)}
  columns = dict.fromkeys(key for split in splits.values() for key in split)
  head = ''.join(f'<th>{_text(column)}</th>' for column in ('', *columns))
  rows = '\n'.join(
    _row(name, *(_count(split.get(column)) for column in columns))
    for name, split in splits.items()
  )
  about = f'{corpus.get("name")} · fingerprint {corpus.get("fingerprint")}'
  return (
    f'<h2>Corpus</h2>\n<p class="note">{_text(about)}</p>\n'
    f'<table class="counts">\n<tr>{head}</tr>\n{rows}\n</table>'
  )


def _configuration(run: _Run) -> str:
  """The sections of the configuration, and the environment after them."""
  facts = {k: v for k, v in run.facts.items() if not isinstance(v, dict)}
  facts.pop('parameters', None)
  tables = {**run.config, 'environment': facts}
  sections = '\n'.join(
    f'<section><h3>{_text(name)}</h3>\n<table>\n'
    + '\n'.join(_row(key, _shown(value)) for key, value in fields.items())
    + '\n</table></section>'
    for name, fields in tables.items()
    if isinstance(fields, dict) and fields
  )
  title = '<h2>Configuration and environment</h2>'
  return f'{title}\n<div class="sections">{sections}</div>'


def _row(name: str, *cells: str) -> str:
  values = ''.join(f'<td>{_text(cell)}</td>' for cell in cells)
  return f'<tr><th>{_text(name)}</th>{values}</tr>'


def _shown(value: Any) -> str:
  """A value of the configuration; text as it is if there is any."""
  if isinstance(value, str) and value:
    return value
  return 'none' if value is None else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> str:
  return '' if finite(value) is None else f'{value:,}'


def _at(value: Any, *keys: str) -> Any:
  """An entry of nested objects, None where one is missing."""
  for key in keys:
    value = value.get(key) if isinstance(value, dict) else None
  return value


def _text(value: Any) -> str:
  return html.escape(str(value).translate(CONTROLS))
