"""One text that is read and written by turns, at constant memory."""

import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from txl_jax.config import ModelConfig
from txl_jax.generation.caches import init_cache, remembered
from txl_jax.generation.decode import stop_ids
from txl_jax.generation.loop import Decoding, Rules, advance, begin, row_keys
from txl_jax.generation.prompts import read_pieces
from txl_jax.generation.sampling import Sampling
from txl_jax.model.cache import compute_copy
from txl_jax.model.functional import project_memory
from txl_jax.model.memory import init_memory

# Tokens that are drawn between two looks at them.
PIECE = 16
ENDLESS = np.iinfo(np.int32).max

_begin = jax.jit(begin, static_argnums=0)
_remembered = jax.jit(remembered, static_argnums=0)
_compute_copy = jax.jit(compute_copy, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
  rules: Rules,
  params: dict,
  decoding: Decoding,
  stop_X: jax.Array,
  limit: jax.Array,
) -> tuple[Decoding, jax.Array, jax.Array]:
  """The state, the next tokens [P, 1], and how many there are in all, [1]."""
  decoding, tokens_P1, _ = advance(rules, params, decoding, stop_X, limit)
  return decoding, tokens_P1, decoding.length_B + 0  # no donated buffer


class Session:
  """A text, and the memory of it.

  Its tokens are those of `generate`: for the same key, one turn writes what
  one call does.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: dict,
    *,
    sampling: Sampling,
    key: jax.Array,
    boundary: int | None = None,
    stop: tuple[int, ...] = (),
  ):
    """Begins with nothing remembered; arguments as of `generate`."""
    self._rules = Rules(config, sampling, boundary, PIECE)
    params = self._params = _compute_copy(config, params)
    self._keys_1 = row_keys(key, 1)
    self._stop_X = stop_ids(config, stop)
    memory = project_memory(config, params, init_memory(config, 1))
    self._cache = init_cache(config, params, memory, PIECE)
    self._last: list[int] = []  # the token that has been written, but not read
    self._n_drawn = 0

  def write(
    self, ids: Iterable[int], length: int | None
  ) -> Iterator[np.ndarray]:
    """Reads ids, then writes. Take all that comes before the next call.

    Args:
      ids: what follows the text so far; at least one at the very beginning.
      length: tokens to write, at most; None = until a stop token, or for ever.

    Yields:
      New tokens, int32, as they come.

    Raises:
      InputError: as `generate`.
    """
    rules, ids = self._rules, np.array([*self._last, *ids], np.int32)
    prompt_1T, lengths_1, memory = read_pieces(
      *(
        rules.config,
        self._params,
        [ids],
        _remembered(rules.config, self._cache),
      ),
      rules.boundary,
    )
    limit = ENDLESS if length is None else self._n_drawn + length
    decoding, first_1, _ = _begin(
      *(rules, self._params, prompt_1T, lengths_1, memory),
      *(self._keys_1, self._n_drawn, self._stop_X, limit),
    )
    n_written = 0
    for tokens, n_in_all in self._pieces(decoding, first_1, limit):
      new = np.asarray(tokens)[: int(n_in_all[0]) - n_written, 0]
      if not new.size:
        return
      n_written += len(new)
      self._n_drawn += len(new)
      self._last = new[-1:].tolist()
      yield new

  def _pieces(
    self, decoding: Decoding, first_1: jax.Array, limit: int
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The tokens of each piece, and how many there are up to its end.

    While a piece is looked at, the next one is being computed. It does not
    change what is remembered if the text had ended before it.
    """
    n_drawn, piece = self._n_drawn + 1, (first_1[None], np.ones(1, np.int32))
    while True:
      following = None
      if n_drawn < limit:
        decoding, *following = _advance(
          self._rules, self._params, decoding, self._stop_X, limit
        )
        n_drawn += PIECE
      self._cache = decoding.cache
      yield piece
      if following is None:
        return
      piece = following
