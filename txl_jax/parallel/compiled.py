"""Compiled programs, kept on disk for the next process that needs them."""

import pathlib

import jax

FOLDER = '~/.cache/txl_jax/compiled'


def keep_compiled() -> None:
  """Keeps what takes more than a second to compile, on GPUs and TPUs.

  Where JAX has been told a folder (JAX_COMPILATION_CACHE_DIR) it stays that. On
  a CPU programs are tied to the very machine, so none is kept unless told.
  """
  told = jax.config.jax_compilation_cache_dir
  if told is None and jax.default_backend() != 'cpu':
    folder = pathlib.Path(FOLDER).expanduser()
    jax.config.update('jax_compilation_cache_dir', str(folder))
