"""Stub until merged."""

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Plateau:
  scale: jax.Array


def init_plateau():
  return Plateau(jnp.ones(()))


def after_validation(config, plateau, loss):
  return plateau


def in_steps(config, tokens_per_step):
  return config
