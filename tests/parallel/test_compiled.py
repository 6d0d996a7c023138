"""Where compiled programs are kept."""

import jax
import pytest

from txl_jax.parallel import compiled


@pytest.fixture
def told(monkeypatch):
  """The folders that JAX is told; before, it has been told none."""
  folders = []
  _tell(monkeypatch, None)
  monkeypatch.setattr(
    jax.config, 'update', lambda _, folder: folders.append(folder)
  )
  return folders


def _tell(monkeypatch, folder):
  kind = type(jax.config)
  monkeypatch.setattr(kind, 'jax_compilation_cache_dir', folder, raising=False)


def test_on_an_accelerator_they_are_kept(monkeypatch, told, tmp_path):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(compiled, 'FOLDER', str(tmp_path))
  compiled.keep_compiled()
  assert told == [str(tmp_path)]


def test_on_a_cpu_they_are_not(told):
  compiled.keep_compiled()
  assert not told


def test_a_folder_of_the_users_stays(monkeypatch, told):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  _tell(monkeypatch, 'mine')
  compiled.keep_compiled()
  assert not told
