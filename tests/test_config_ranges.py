"""The ranges of the fields, checked at birth."""

import pytest

from txl_jax.config import (
  DataConfig,
  EvalConfig,
  ModelConfig,
  SampleConfig,
  TrainConfig,
)
from txl_jax.errors import InputError


@pytest.mark.parametrize(
  ('cls', 'names', 'bad', 'good'),
  [
    (ModelConfig, 'vocab_size n_layers n_heads d_head d_ff d_embed', 0, 1),
    (ModelConfig, 'div_val unroll', 0, 1),
    (ModelConfig, 'd_model', 15, 14),
    (ModelConfig, 'memory_length clamp_length', -1, 0),
    (ModelConfig, 'dropout attention_dropout', 1.0, 0.0),
    (ModelConfig, 'dropout attention_dropout', -0.1, 0.99),
    (ModelConfig, 'dropout attention_dropout', float('nan'), 0.5),
    (ModelConfig, 'init_std projection_init_std', -0.1, 0.0),
    (ModelConfig, 'layer_norm_epsilon', -0.1, 1e-6),
    (ModelConfig, 'cutoffs', (100,), (99,)),
    (ModelConfig, 'cutoffs', (0, 5), (1, 5)),
    (ModelConfig, 'cutoffs', (20, 20), (20, 21)),
    (ModelConfig, 'tie_projections', (True, True), (True,)),
    (DataConfig, 'validation_fraction test_fraction', 0.0, 0.001),
    (DataConfig, 'validation_fraction test_fraction', 0.5, 0.499),
    (TrainConfig, 'steps batch_size segment_length', 0, 1),
    (TrainConfig, 'segments_per_step keep_checkpoints', 0, 1),
    (TrainConfig, 'log_every_steps eval_every_steps', 0, 1),
    (TrainConfig, 'checkpoint_every_steps', 0, 1),
    (TrainConfig, 'seed', -1, 0),
    (EvalConfig, 'batch_size segment_length', 0, 1),
    (EvalConfig, 'memory_length clamp_length warmup_tokens', -1, 0),
    (SampleConfig, 'length top_k', 0, 1),
    (SampleConfig, 'temperature', -0.1, 0.0),
    (SampleConfig, 'top_p', 0.0, 1.0),
    (SampleConfig, 'top_p', 1.1, None),
  ],
)
def test_ranges(cls, names, bad, good):
  rest = {'vocab_size': 100} if cls is ModelConfig else {}
  section = cls.__name__.removesuffix('Config').lower()
  for name in names.split():
    assert getattr(cls(**{**rest, name: good}), name) == good
    with pytest.raises(InputError) as caught:
      cls(**{**rest, name: bad})
    assert str(caught.value).startswith(f'config.{section}.{name} must be ')
    assert str(caught.value).endswith(f'found {bad!r}')


def test_no_cluster_may_be_without_width():
  fields = dict(vocab_size=100, cutoffs=(10, 50), d_model=16)
  assert ModelConfig(**fields, div_val=4).div_val == 4
  with pytest.raises(InputError, match='config.model.div_val must be smaller'):
    ModelConfig(**fields, div_val=5)


@pytest.mark.parametrize(
  ('section', 'make'),
  [
    ('model', lambda **fields: ModelConfig(vocab_size=9, **fields)),
    ('eval', EvalConfig),
  ],
)
def test_the_memory_must_hold_the_span(section, make):
  assert make(memory_length=4, attention_span=5).attention_span == 5
  assert make(memory_length=0, attention_span=1).attention_span == 1
  for span in (0, 6, -1):
    with pytest.raises(InputError) as caught:
      make(memory_length=4, attention_span=span)
    assert str(caught.value) == (
      f'config.{section}.attention_span must be from 1 to memory_length + 1 '
      f'(5), found {span}'
    )
