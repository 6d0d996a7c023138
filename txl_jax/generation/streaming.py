"""Text as it is written: never half a character, never taken back."""

import os
from collections.abc import Iterable

from txl_jax.data.vocabulary import Vocabulary
from txl_jax.data.wikitext import from_wikitext

# Ids that are kept to decode what follows them, and those after which older
# ones are let go.
CONTEXT, MOST = 64, 512
# A character of which not all bytes have come shows as so many U+FFFD at most.
UNFINISHED = 3
# Words after which nothing but an apostrophe changes how a word is joined.
LOOK_AHEAD = 3


class TextStream:
  """Decodes ids that come in pieces.

  All that it gives, joined, is what decoding all ids at once would give.
  """

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary
    self._ids: list[int] = []
    self._n_shown = 0  # characters of their text

  def skip(self, ids: Iterable[int]) -> None:
    """Goes on behind ids whose text is not to be shown."""
    self._ids += [int(i) for i in ids]
    self._ids = self._ids[-CONTEXT:]
    self._n_shown = len(self._vocabulary.decode(self._ids))

  def push(self, ids: Iterable[int]) -> str:
    """The text that is certain once these ids have come, too."""
    self._ids += [int(i) for i in ids]
    text = self._vocabulary.decode(self._ids)
    trailing = len(text) - len(text.rstrip('\ufffd'))
    return self._shown(text, len(text) - min(trailing, UNFINISHED))

  def finish(self) -> str:
    """The rest, as no more ids come."""
    text = self._vocabulary.decode(self._ids)
    return self._shown(text, len(text))

  def _shown(self, text: str, until: int) -> str:
    new = text[self._n_shown : until]
    self._n_shown = max(self._n_shown, until)
    if len(self._ids) > MOST:
      n_left = len(text) - self._n_shown
      self._ids = self._ids[-CONTEXT:]
      self._n_shown = len(self._vocabulary.decode(self._ids)) - n_left
    return new


class WikiTextStream:
  """Joins the tokenised form of WikiText into plain English, piece by piece."""

  def __init__(self):
    self._line = ''  # as it is tokenised
    self._n_shown = 0  # characters of the line, joined
    self._begun = False

  def push(self, text: str) -> str:
    """The text that is certain once this, too, has come."""
    *whole, self._line = (self._line + text).split('\n')
    parts = [self._rest(line, from_wikitext(line)) + '\n' for line in whole]
    return ''.join(parts) + self._rest(self._line, self._certain(), False)

  def finish(self) -> str:
    """The rest, as nothing more comes."""
    return self._rest(self._line, from_wikitext(self._line))

  def _rest(self, line: str, joined: str, ends: bool = True) -> str:
    """What is new of a line; a blank before the very first word stays."""
    new = joined[self._n_shown :]
    self._n_shown = 0 if ends else max(self._n_shown, len(joined))
    if (new or ends) and not self._begun:
      self._begun = True
      new = ' ' * line.startswith(' ') + new
    return new

  def _certain(self) -> str:
    """The beginning of the line, joined, that stays whatever follows it."""
    words = self._line.split()
    # An apostrophe may close a quotation, however far behind.
    futures = (words[:-LOOK_AHEAD], words, [*words, "'"])
    joined = (from_wikitext(' '.join(future)) for future in futures)
    return os.path.commonprefix(list(joined))
