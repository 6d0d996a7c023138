"""English text to the tokenised form of WikiText and back."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txl_jax.data.wikitext import from_wikitext, to_wikitext

# English, its tokenised form.
_BOTH_WAYS = [
  ('', ''),
  ('Hello, world!', 'Hello , world !'),
  ('It cost 1,234.5 francs.', 'It cost 1 @,@ 234 @.@ 5 francs .'),
  ('Version 1.2.3 is out.', 'Version 1 @.@ 2 @.@ 3 is out .'),
  ('the 1,000th visitor', 'the 1,000th visitor'),
  ('a well-known two-by-four', 'a well @-@ known two @-@ by @-@ four'),
  ("It's Anna's; don't ask.", "It 's Anna 's ; don 't ask ."),
  ("We've said they'll wait.", "We 've said they 'll wait ."),
  ("the dogs' bowl", "the dogs ' bowl"),
  ("a hit of 1997's summer", "a hit of 1997 's summer"),
  ("O'Hara ate an entrée d'été.", "O 'Hara ate an entrée d 'été ."),
  ("music of the '90s, mostly", "music of the ' 90s , mostly"),
  ("He said 'yes' twice.", "He said ' yes ' twice ."),
  ('He said "yes" and "no".', 'He said " yes " and " no " .'),
  ('"Go!" she cried. "Now."', '" Go ! " she cried . " Now . "'),
  ('(See [1] or {x}.)', '( See [ 1 ] or { x } . )'),
  ('"[h]e left the office(s)"', '" [ h ] e left the office ( s ) "'),
  ('"an [A] and [a] b"', '" an [ A ] and [ a ] b "'),
  ('Well... no [...] yes', 'Well ... no [ ... ] yes'),
  ('wind of 90 km/h and/or rain', 'wind of 90 km / h and / or rain'),
  ('It cost US$5, £6 and 7%.', 'It cost US $ 5 , £ 6 and 7 % .'),
  ('ranked #1 at 9:30', 'ranked # 1 at 9 : 30'),
  ('in 1990: 35 men', 'in 1990 : 35 men'),
  ('a list: one; two', 'a list : one ; two'),
  ('pages 5–6 of it', 'pages 5 – 6 of it'),
  ('a Paris–Rome train', 'a Paris – Rome train'),
  ('rain – and wind', 'rain – and wind'),
  ('rain—and wind', 'rain — and wind'),
  ('rain -- and wind', 'rain -- and wind'),
  ('rain - and wind', 'rain - and wind'),
  ('second- and third-rate', 'second- and third @-@ rate'),
  ('20 °C at 5° and −3', '20 ° C at 5 ° and − 3'),
  ('a B+ from the R&D staff', 'a B + from the R & D staff'),
  ('Smith & Sons', 'Smith & Sons'),
  ('in the U.S. It is', 'in the U.S. It is'),
  ('the U.S. army', 'the U.S. army'),
  ("Acme Inc.'s owner", "Acme Inc . ' s owner"),
  ('Dr. J. R. Hall met St. Anne.', 'Dr. J. R. Hall met St. Anne .'),
  ('Hall, Jr. and Co. of Rome', 'Hall , Jr. and Co. of Rome'),
  ('Hall, Jr. Then Co.', 'Hall , Jr . Then Co .'),
  ('No. 7 said: No.', 'No. 7 said : No .'),
  ('Visit Example.com.', 'Visit Example.com.'),
  ("The <unk>'s <unk>-like.", "The <unk> 's <unk> @-@ like ."),
  ('7,<unk> and <formula>', '7 @,@ <unk> and <formula>'),
  ('“Hi,” it’s ‘me’', '“ Hi , ” it ’ s ‘ me ’'),
  ('at ten o’clock....', 'at ten o ’ clock ....'),
  ('= = Early life = =', '= = Early life = ='),
  ('= The Two-Year War =', '= The Two @-@ Year War ='),
  ('One.\n\nTwo.\n', 'One .\n\nTwo .\n'),
]


@pytest.mark.parametrize(('english', 'tokenised'), _BOTH_WAYS)
def test_examples_both_ways(english, tokenised):
  assert to_wikitext(english) == tokenised
  assert from_wikitext(tokenised) == english


@pytest.mark.parametrize(
  ('english', 'tokenised'),
  [
    (' = Title = ', '= Title ='),
    ('== Title ==', '= = Title = ='),
    ('  two   blanks\t ', 'two blanks'),
    ('rain--and', 'rain -- and'),
    ('rain — and', 'rain — and'),
    ("Get 'em now!", "Get ' em now !"),
    ("I don 't know, he said.", "I don 't know , he said ."),
  ],
)
def test_examples_of_tokenising(english, tokenised):
  assert to_wikitext(english) == tokenised


def test_quotes_alternate_in_each_line():
  assert from_wikitext('a " b\n" c " d') == 'a "b\n"c" d'


_LETTERS = st.sampled_from('abcdefghilmnoprstuvwyéß')
_WORD = st.text(_LETTERS, min_size=2, max_size=7)
_NAME = _WORD.map(str.capitalize)
_NUMBER = st.one_of(
  st.integers(0, 10**7).map('{:,}'.format),
  st.integers(0, 10**5).map(lambda n: f'{n / 100:,.2f}'),
)
_ATOM = st.one_of(
  _WORD,
  _NAME,
  _NUMBER,
  st.just('<unk>'),
  st.builds('{}-{}'.format, _WORD, _WORD),
  st.builds("{}'{}".format, _WORD, st.sampled_from(['s', 't', 'll', 're'])),
  _NAME.map("{}s'".format),
  st.sampled_from(['U.S.', 'No. 5', 'Dr.', 'km/h', '$5', '40%', '9:30']),
)
_PHRASE = st.lists(_ATOM, min_size=1, max_size=4).map(' '.join)
_PART = st.builds(
  '{}{}'.format,
  st.one_of(
    _PHRASE,
    _PHRASE.map('({})'.format),
    _PHRASE.map('[{}]'.format),
    _PHRASE.map('"{}"'.format),
    _PHRASE.map('("{}.")'.format),
  ),
  # A colon between numbers reads as a time.
  st.sampled_from(['', '', ',', ';']),
)
_SENTENCE = st.builds(
  lambda parts, last, end: ' '.join([*parts, last]) + end,
  st.lists(_PART, max_size=4),
  _WORD,
  st.sampled_from(['.', '!', '?', '...']),
)
_TEXT = st.lists(st.lists(_SENTENCE, max_size=3).map(' '.join), max_size=3)


@settings(deadline=None)
@given(_TEXT.map('\n'.join))
def test_english_comes_back(text):
  tokenised = to_wikitext(text)
  assert from_wikitext(tokenised) == text
  assert to_wikitext(tokenised) == tokenised


@settings(deadline=None)
@given(st.text(st.sampled_from('aZ1s.,-@\'"<>()& \n’²_')) | st.text())
def test_tokenising_twice_changes_nothing(text):
  once = to_wikitext(text)
  assert to_wikitext(once) == once
  assert once.count('\n') == from_wikitext(once).count('\n')
  assert once.count('\n') == text.count('\n')
  assert all(line == ' '.join(line.split()) for line in once.split('\n'))


@pytest.mark.parametrize('part', ['valid', 'test'])
def test_lines_of_wikitext(data_dir, part):
  path = data_dir / 'wikitext2_valid_test' / f'wiki.{part}.tokens'
  if not path.is_file():
    pytest.skip(f'{path} is missing')
  lines = [
    ' '.join(line.split()) for line in path.read_text('utf-8').split('\n')
  ]
  lines = [line for line in lines if line]
  english = [from_wikitext(line) for line in lines]
  # The joined lines are English, so that the way back has work to do.
  joined = '\n'.join(english)
  assert not any(mark in joined for mark in (' ,', "n 't", '@-@', '( '))
  back = [to_wikitext(line) for line in english]
  same = sum(map(str.__eq__, lines, back)) / len(lines)
  words, kept = 0, 0
  for line, again in zip(lines, back):
    words += len(line.split())
    common = collections.Counter(line.split())
    common &= collections.Counter(again.split())
    kept += common.total()
  # Measured: 99.88 % and 100 % of the lines, 99.998 % of the words.
  assert same > 0.995
  assert kept / words > 0.9999
  assert [to_wikitext(line) for line in lines] == lines
