"""Between plain English and the tokenised form of WikiText.

WikiText separates words by blanks, splits punctuation off and writes
`@-@`, `@,@` and `@.@` for marks inside words and numbers. Its lines are kept.
"""

import re
import unicodedata

# A period stays on these, on single capitals and on words such as `U.S.`.
_ABBREVIATIONS = frozenset(
  'Adm Asst Bros Brig Capt Cmdr Col Corp Cpl Dr Gen Gov Hon Lt Maj Messrs Mlle '
  'Mme Mr Mrs Ms Msgr Op Ph Prof Pvt Rep Reps Rev Rt Sen Sens Sgt Sr St Supt '
  'var v vs'.split()
)
# And on these before a number.
_NUMBERED = frozenset(['Art', 'No', 'Nos', 'Nr', 'pp'])

_UNIT = r'<\w+>'
_LETTER = r'[^\W\d_]'
_CONTRACTED = r'(?:s|t|ll|ve|d|m|re)'
_HYPHEN = re.compile(rf'(?<=[\w>])-(?=\w|{_UNIT})')
# `1,000th` keeps its comma.
_DIGIT_MARK = re.compile(rf'(?<=[\d>])([.,])(?=\d+(?!\w)|{_UNIT})')
_TAIL = rf"(?P<tail>(?:(?<={_LETTER})|(?<=>))'(?={_LETTER})|(?<=\d)'(?=s\b))"
_ATTACHED = rf"{_TAIL}|(?<=\S)'|'(?!\w)"
_APOSTROPHE = re.compile(
  rf"{_ATTACHED}|(?<!\S)'(?!{_CONTRACTED}(?![\w']))", re.IGNORECASE
)
# In the tokenised form a word may begin with an apostrophe: `K 'awiil`.
_TOKENISED_APOSTROPHE = re.compile(_ATTACHED, re.IGNORECASE)
_SYMBOL = re.compile(
  rf'{_UNIT}|(?<!\S)@[-.,]@(?!\S)'
  r"|\.{2,}|-{2,}|(?<!\d),|,(?!\d)|[^\w\s.,'-]"
)

_LEFT = frozenset(', . ; : ! ? ) ] } % ” … ° ′ ″ ♭ ♯ †'.split())
_RIGHT = frozenset('( [ { $ £ € ¥ ₤ # ~ “ ‘'.split())
_BOTH = frozenset('/ — ⁄ ‑ @'.split())
_DOLLARS = frozenset(['US', 'AU', 'CA', 'HK', 'NZ'])


def to_wikitext(text: str) -> str:
  """The tokenised form of English text.

  Words are separated by single blanks, lines end where they did, and words
  such as `<unk>` pass. A line in the tokenised form is left as it is.
  """
  return '\n'.join(map(_tokenise, text.split('\n')))


def from_wikitext(text: str) -> str:
  """English text from the tokenised form, with natural spacing.

  Straight quotes open and close alternately in each line.
  """
  return '\n'.join(map(_join, text.split('\n')))


def _tokenise(line: str) -> str:
  line = ' '.join(line.split())
  # What nothing splits is tokenised, and `'awiil` in it no opening quote.
  if _split(line, _TOKENISED_APOSTROPHE) == line:
    return line
  return _split(line, _APOSTROPHE)


def _split(line: str, apostrophe: re.Pattern[str]) -> str:
  line = _HYPHEN.sub(' @-@ ', line)
  line = _DIGIT_MARK.sub(r' @\1@ ', line)
  line = apostrophe.sub(lambda m: " '" if m['tail'] else " ' ", line)
  words = _SYMBOL.sub(r' \g<0> ', line).split()
  return ' '.join(map(_period, words, [*words[1:], '']))


def _period(word: str, after: str) -> str:
  """The word, its period split off where it ends a sentence."""
  stem = word[:-1]
  if not word.endswith('.') or not stem.strip('.'):
    return word
  keeps = (
    stem in _ABBREVIATIONS
    or re.fullmatch('[A-Z]', stem)
    or ('.' in stem and re.search(_LETTER, stem))
    # WikiText never splits before a small letter.
    or after[:1].islower()
    or (stem in _NUMBERED and re.match(rf'\d|{_UNIT}', after))
  )
  return word if keeps else f'{stem} .'


def _join(line: str) -> str:
  words = line.split()
  text, quotes, glued = '', set(), True
  for i, word in enumerate(words):
    if word == '"':
      left = word in quotes
      right = not left
      quotes ^= {word}
    elif word == "'":
      left, right = _apostrophe(words, i, quotes)
    else:
      left, right = _sides(words, i)
    if re.fullmatch('@[-.,]@', word):
      word = word[1]
    text += word if left or glued else f' {word}'
    glued = right
  return text


def _apostrophe(
  words: list[str], i: int, quotes: set[str]
) -> tuple[bool, bool]:
  """Whether a lone apostrophe joins the word before it and the one after."""
  before, after = _neighbours(words, i)
  if after == 's' and before[-1:] in ('.', ']', ')'):
    return True, True
  if "'" in quotes:
    quotes.discard("'")
    return True, False
  if not after or not re.match(r'[\w<"(\[]', after):
    return True, False
  closed = "'" in words[i + 1 :]
  if before[-1:] in ('s', 'z', 'x') or (before[-1:] == '>' and not closed):
    return True, False
  # An apostrophe that nothing closes stands for letters left out: '90s.
  if closed and not after[0].isdigit():
    quotes.add("'")
  return False, True


def _sides(words: list[str], i: int) -> tuple[bool, bool]:
  """Whether a word joins the word before it and the one after."""
  word = words[i]
  before, after = _neighbours(words, i)
  if word in _BOTH or re.fullmatch('@[-.,]@', word):
    return True, True
  if len(word) == 1 and unicodedata.category(word)[0] == 'M':
    return True, True
  if word == '°' and after in ('C', 'F'):
    return False, True
  if word[0] == '.' and before.endswith('.'):
    return False, False
  if word == ']':
    return True, _begins_word(words, i)
  if word == ':':
    # A time or a ratio; what follows a year is neither.
    return True, bool(re.fullmatch(r'\d\d? \d+', f'{before} {after}'))
  if word in _LEFT or not word.strip('.'):
    return True, False
  if word == '$':
    return before in _DOLLARS, True
  if word == '(':
    return words[i + 1 : i + 3] == ['s', ')'], True
  if word in _RIGHT:
    return False, True
  if re.match(r"'\w", word):
    return bool(re.search(rf'(?:{_LETTER}|[\d>])$', before)), False
  return _operator(word, before, after)


def _begins_word(words: list[str], i: int) -> bool:
  """Whether the bracket closes a changed first letter: `[h]e`."""
  # `[a]`, `[A]` and `[I]` may be words of their own.
  changed = re.compile(r'\[ [B-HJ-Zb-z] \] [^\W\d_A-Z]')
  return i > 1 and bool(changed.match(' '.join(words[i - 2 : i + 2])))


def _operator(word: str, before: str, after: str) -> tuple[bool, bool]:
  numbers = before[-1:].isdigit(), after[:1].isdigit()
  if word == '’':
    elided = bool(re.fullmatch(_LETTER, before))
    return True, elided or bool(re.fullmatch(_CONTRACTED, after))
  if word == '–':
    names = before[:1].isupper() and after[:1].isupper()
    # Between numbers or names it is a range, elsewhere a pause.
    both = all(numbers) or names
    return both, both
  if word == '&':
    both = all(re.fullmatch(r'[A-Z]{1,2}\d*', side) for side in (before, after))
    return both, both
  if word in ('+', '−'):
    grade = word == '+' and bool(re.fullmatch('[A-D]', before))
    return grade, not grade and numbers == (False, True)
  return False, False


def _neighbours(words: list[str], i: int) -> tuple[str, str]:
  before = words[i - 1] if i else ''
  after = words[i + 1] if i + 1 < len(words) else ''
  return before, after
