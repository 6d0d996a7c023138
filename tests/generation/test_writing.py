"""Text by turns: streams, long prompts, and the command that shows them."""

import dataclasses
import functools
import io
import itertools
import json
import types

import jax
import numpy as np
import pytest

import txl_jax
from txl_jax.cli import main
from txl_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from txl_jax.data.vocabulary import ByteVocabulary
from txl_jax.data.words import WordVocabulary
from txl_jax.errors import InputError
from txl_jax.generation import session as session_lib
from txl_jax.generation.sampling import Sampling
from txl_jax.generation.session import Session
from txl_jax.generation.text import (
  Writer,
  continue_all,
  continue_text,
  stop_tokens,
)

MODEL = txl_jax.ModelConfig(
  vocab_size=257,
  n_layers=1,
  n_heads=2,
  d_model=16,
  d_head=8,
  d_ff=16,
  memory_length=128,
  init_std=0.3,
)
CONFIG = Config(
  model=MODEL,
  train=TrainConfig(segment_length=16),
  eval=EvalConfig(memory_length=128),
  sample=SampleConfig(length=40, temperature=1.0, top_p=None),
)
BYTES = ByteVocabulary()


@functools.cache
def _params() -> dict:
  params = txl_jax.init_params(MODEL, jax.random.key(0))
  # Some of ASCII, and bytes that are no character by themselves.
  likely_V = np.isin(np.arange(257), [*range(97, 107), 10, 0xC3, 0xA4, 0xB6])
  bias_V = params['softmax']['bias'] - 8 * (1 - likely_V)
  params['softmax'] = {**params['softmax'], 'bias': bias_V}
  return params


def _writer(**options) -> Writer:
  return Writer(CONFIG, _params(), BYTES, CONFIG.sample, 3, **options)


def _at_once(prompt: bytes, length: int) -> np.ndarray:
  """The tokens of one call that reads the prompt whole."""
  memory = txl_jax.init_memory(MODEL, 1)
  tokens_1L, _ = txl_jax.generate(
    MODEL,
    _params(),
    np.array([[256, *prompt]]),
    txl_jax.project_memory(MODEL, _params(), memory),
    length=length,
    key=jax.random.key(3),
    boundary=256,
  )
  return np.asarray(tokens_1L[0])


def test_a_stream_is_the_text_of_one_call():
  pieces = list(_writer().write('the ä', 40))
  assert len([piece for piece in pieces if piece]) > 2
  expected = BYTES.decode(_at_once('the ä'.encode(), 40))
  assert ''.join(pieces) == expected
  text = continue_text(CONFIG, _params(), BYTES, 'the ä', CONFIG.sample, 3)
  assert text == expected
  assert '\ufffd' in text  # bytes that are no characters, too


def test_turns_are_one_long_text():
  session = Session(
    MODEL,
    _params(),
    sampling=Sampling(),
    key=jax.random.key(3),
    boundary=256,
  )
  first = np.concatenate([*session.write([256, *b'one'], 20)])
  again = np.concatenate([*session.write(b'two', 17)])
  assert (len(first), len(again)) == (20, 17)
  assert first.tolist() == _at_once(b'one', 20).tolist()
  # As one text, of which the second turn draws from number 20 on.
  text = [256, *b'one', *first, *b'two', *again]
  memory = txl_jax.init_memory(MODEL, 1)
  logp_1TV, _ = txl_jax.log_probs(MODEL, _params(), np.array([text]), memory)
  key = jax.random.fold_in(jax.random.key(3), 0)
  for i, token in enumerate(again):
    step_key = jax.random.fold_in(jax.random.fold_in(key, 20 + i), 0)
    drawn = jax.random.categorical(step_key, logp_1TV[0, len(text) - 18 + i])
    assert token == drawn


def test_text_goes_on_for_ever_at_constant_memory_and_cost():
  pieces = _writer().write('a', None)
  n_before = None
  for i, _ in enumerate(itertools.islice(pieces, 40)):
    if i == 10:
      n_before, n_programs = _bytes_alive(), session_lib._advance._cache_size()
  assert _bytes_alive() <= n_before
  # A program's shapes are fixed, and so is what a token costs.
  assert session_lib._advance._cache_size() == n_programs


def _bytes_alive() -> int:
  return sum(x.nbytes for x in jax.live_arrays())


def test_a_turn_ends_with_a_line_and_the_next_begins_one():
  writer = _writer(until='line')
  turns = [''.join(writer.write(text, 200)) for text in ('a', 'b', '')]
  assert all(turn.count('\n') == 1 and turn.endswith('\n') for turn in turns)
  session = Session(
    MODEL,
    _params(),
    sampling=Sampling(),
    key=jax.random.key(3),
    boundary=256,
    stop=(10,),
  )
  ids = [[256, *b'a'], [*b'b'], []]
  expected = [
    BYTES.decode(np.concatenate([*session.write(i, 200)])) for i in ids
  ]
  assert turns == expected


def test_a_new_line_comes_before_a_turn_that_needs_one():
  writer = _writer()
  list(writer.write('a', 3))
  written = []

  def noted(ids, length):
    written.append(bytes(ids.tolist()))
    return []

  writer._session.write = noted
  writer._ends_line = False
  list(writer.write('b', 3))
  writer._ends_line = True
  list(writer.write('b', 3))
  assert written == [b'\nb', b'b']


PROMPTS = ['one', '', 'a longer prompt ' * 12, 'the ä']


def test_many_prompts_are_each_as_if_alone():
  many = [*continue_all(CONFIG, _params(), BYTES, PROMPTS, CONFIG.sample, 3)]
  assert [line.prompt for line in many] == PROMPTS
  # The first row draws with the key of a text alone.
  assert many[0].text == ''.join(_writer().write('one', 40))
  other = ['x', *PROMPTS[1:]]
  again = [*continue_all(CONFIG, _params(), BYTES, other, CONFIG.sample, 3)]
  assert again[1:] == [
    dataclasses.replace(line, log_prob=pytest.approx(line.log_prob, rel=1e-4))
    for line in many[1:]
  ]
  assert all(line.tokens == 40 and line.log_prob < 0 for line in many)


def test_what_ends_a_line():
  assert stop_tokens(BYTES, 'line') == (10,)
  assert stop_tokens(BYTES, 'document') == (256,)
  words = WordVocabulary(['<eos>', 'a'])
  assert stop_tokens(words, 'line') == (0,)
  with pytest.raises(InputError, match='no token of the vocabulary ends a doc'):
    stop_tokens(words, 'document')


# The command ------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
  """`txl generate` with the model above."""
  run = types.SimpleNamespace(config=CONFIG, params=_params(), vocabulary=BYTES)
  monkeypatch.setattr('txl_jax.training.run.load_run', lambda *_: run)
  return lambda *more: main(['generate', '--workdir=x', '--seed=3', *more])


def test_a_prompt_is_shown_with_what_follows(command, capsys):
  assert command('--prompt=the ä', '--length=40') == 0
  text = ''.join(_writer().write('the ä', 40))
  assert capsys.readouterr().out == f'the ä{text}'.rstrip('\n') + '\n'


def test_turns_from_a_pipe(command, capsys, monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('a\n\nb\n'))
  assert command('--interactive', '--until=line', '--length=200') == 0
  writer = _writer(until='line')
  turns = [''.join(writer.write(text, 200)) for text in ('a', '', 'b')]
  assert capsys.readouterr().out == ''.join(turns)


def test_a_file_of_prompts(command, capsys, tmp_path):
  (tmp_path / 'prompts').write_text('\n'.join([*PROMPTS, '']))
  assert command(f'--prompts={tmp_path / "prompts"}') == 0
  lines = capsys.readouterr().out.splitlines()
  first, *_ = found = [*map(json.loads, lines)]
  assert [line['prompt'] for line in found] == PROMPTS
  assert first['text'] == ''.join(_writer().write('one', 40))
  assert first['tokens'] == 40 and first['log_prob'] < 0


def test_an_interrupt_ends_endless_text(command, capsys, monkeypatch):
  written, write = [], Writer.write

  def interrupted(*arguments):
    for i, piece in enumerate(write(*arguments)):
      if i == 4:
        raise KeyboardInterrupt
      written.append(piece)
      yield piece

  monkeypatch.setattr(Writer, 'write', interrupted)
  assert command('--length=-1') == 0
  captured = capsys.readouterr()
  assert captured.out == ''.join(written) + '\n' and captured.err == ''


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--prompts={folder}/none'], 'none: No such file'),
    (['--prompts={folder}/empty'], 'empty is empty'),
    (['--prompts={folder}/binary'], 'binary must be UTF-8, found 0xff at'),
    (['--prompts={folder}/empty', '--length=-1'], 'writes one text'),
    (['--interactive', '--length=-1'], 'needs --until'),
    (['--length=-2'], 'config.sample.length must be at least 1'),
    (['--min_p=2'], 'min_p must be in (0, 1]'),
    (['--prompt=\udcff'], 'the prompt must be UTF-8'),
  ],
)
def test_mistakes(command, capsys, tmp_path, arguments, message):
  (tmp_path / 'empty').touch()
  (tmp_path / 'binary').write_bytes(b'a\xff')
  arguments = [a.format(folder=tmp_path) for a in arguments]
  assert command(*arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
