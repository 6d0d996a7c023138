"""Transformer-XL in JAX and Flax: language models with explicit memory."""

from importlib.metadata import version as _version

from txl_jax.config import ModelConfig as ModelConfig
from txl_jax.generation.decode import generate as generate
from txl_jax.generation.decode import (
  generate_with_log_probs as generate_with_log_probs,
)
from txl_jax.interop.official import from_official as from_official
from txl_jax.interop.pretrained import load_pretrained as load_pretrained
from txl_jax.interop.pretrained import save_pretrained as save_pretrained
from txl_jax.model.functional import init_params as init_params
from txl_jax.model.functional import log_probs as log_probs
from txl_jax.model.functional import project_memory as project_memory
from txl_jax.model.functional import score as score
from txl_jax.model.memory import Memory as Memory
from txl_jax.model.memory import ProjectedMemory as ProjectedMemory
from txl_jax.model.memory import init_memory as init_memory
from txl_jax.model.segments import score_segments as score_segments
from txl_jax.model.transformer import TransformerXL as TransformerXL

__version__ = _version('txl_jax')
