"""Drawing the next token."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from txl_jax.config import ModelConfig, SampleConfig
from txl_jax.errors import InputError
from txl_jax.model.transformer import TransformerXL


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn; hashable, and checked at birth.

  The temperature comes first, then each filter takes tokens from what the one
  before it has left, in the order of the fields.

  Attributes:
    temperature: divides the log-probabilities; 0 takes the most likely token.
    top_k: keep the k most likely tokens.
    top_p: keep the most likely tokens that together reach this probability
      (Holtzman et al. 2020).
    min_p: keep tokens at least this share as likely as the most likely one
      (Nguyen et al. 2024).
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:
      raise InputError(
        f'temperature must be a number of at least 0, found {self.temperature}'
      )
    if self.top_k is not None and self.top_k < 1:
      raise InputError(f'top_k must be at least 1, found {self.top_k}')
    for name in ('top_p', 'min_p'):
      share = getattr(self, name)
      if share is not None and not 0 < share <= 1:
        raise InputError(f'{name} must be in (0, 1], found {share}')

  @classmethod
  def of(cls, config: SampleConfig) -> 'Sampling':
    """What an experiment's samples are drawn with."""
    return cls(config.temperature, config.top_k, config.top_p, config.min_p)

  @property
  def is_plain(self) -> bool:
    """Whether tokens are drawn from the model's own distribution."""
    whole = self.top_p in (None, 1) and self.min_p is None
    return self.temperature == 1 and self.top_k is None and whole


def draw(
  config: ModelConfig,
  params: dict,
  sampling: Sampling,
  hidden_BD: jax.Array,
  keys_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Draws one token per row from hidden states.

  Without temperature and filters a tail of the adaptive softmax is opened only
  if its cluster has been drawn. All else needs the whole distribution.

  Returns:
    The tokens, int32 [B], and their log-probabilities [B] under the model's own
    distribution: at temperature 1, without filters.
  """
  model, variables = TransformerXL(config), {'params': params}
  if sampling.is_plain:
    return model.apply(variables, hidden_BD, keys_B, method='sample')
  logp_B1V = model.apply(variables, hidden_BD[:, None], method='log_probs')
  tokens_B = sample(logp_B1V[:, 0], keys_B, sampling)
  chosen_B1 = jnp.take_along_axis(logp_B1V[:, 0], tokens_B[:, None], axis=1)
  return tokens_B, chosen_B1[:, 0]


def sample(
  logp_BV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> jax.Array:
  """Draws one token per row, int32 [B].

  Args:
    logp_BV: log-probabilities, not necessarily normalised.
    keys_B: one typed PRNG key per row.
    sampling: temperature and filters.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
  logp_BV = logp_BV / sampling.temperature
  if sampling.top_k is not None:
    logp_BV = keep_top_k(logp_BV, sampling.top_k)
  if sampling.top_p is not None and sampling.top_p < 1:
    logp_BV = keep_top_p(logp_BV, sampling.top_p)
  if sampling.min_p is not None:
    logp_BV = keep_min_p(logp_BV, sampling.min_p)
  return jax.vmap(jax.random.categorical)(keys_B, logp_BV).astype(jnp.int32)


def keep_top_k(logp_BV: jax.Array, k: int) -> jax.Array:
  """All but the k most likely tokens become impossible; ties at k all stay."""
  least_B = jax.lax.top_k(logp_BV, min(k, logp_BV.shape[-1]))[0][:, -1]
  return jnp.where(logp_BV >= least_B[:, None], logp_BV, -jnp.inf)


def keep_top_p(logp_BV: jax.Array, p: float) -> jax.Array:
  """Tokens outside the smallest most likely set of probability p go.

  Tokens as likely as the last of the set all stay.
  """
  sorted_BV = jnp.sort(logp_BV, descending=True)
  share_BV = jax.nn.softmax(sorted_BV)
  before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
  n_kept_B = (before_BV < p).sum(axis=-1)
  least_B1 = jnp.take_along_axis(sorted_BV, n_kept_B[:, None] - 1, axis=-1)
  return jnp.where(logp_BV >= least_B1, logp_BV, -jnp.inf)


def keep_min_p(logp_BV: jax.Array, p: float) -> jax.Array:
  """Tokens less than p times as likely as the most likely one go."""
  least_B1 = logp_BV.max(axis=-1, keepdims=True) + math.log(p)
  return jnp.where(logp_BV >= least_B1, logp_BV, -jnp.inf)
