"""Losses of some rows and the kernels for them, interpreted and on Hopper."""

import functools
import re

import jax
import jax.numpy as jnp
import kernel_checks as checks
import pytest

from txl_jax.ops import cross_entropy, hopper, shards
from txl_jax.ops import logits as lib
from txl_jax.ops.tail_cross_entropy import Tail, tail_cross_entropy

# X, E, V, and how many words the vocabulary is padded with
CASES = {
  'several blocks': (256, 64, 384, 0),
  'padded rows, width and words': (150, 104, 256, 90),
  'more steps than are fetched at once': (128, 320, 128, 5),
}
LARGE = {
  'WikiText-103 base': (6144, 512, 20_096, 93),
  "WikiText-103 base, the paper's sizes": (4608, 416, 20_096, 93),
  'WikiText-103 large': (6144, 1024, 20_096, 93),
  'the second tail': (384, 512, 160_000, 0),
  'a narrow tail': (128, 16, 67_840, 105),
}
NAMES = ('loss', 'hidden', 'weight', 'bias')


def _operands(case, dtype=jnp.bfloat16):
  """Those of the operator, and the gradients of the losses."""
  X, E, V, n_added = case
  keys = iter(jax.random.split(jax.random.key(0), 5))

  def normal(*shape, scale=1.0):
    return scale * jax.random.normal(next(keys), shape)

  targets_X = jax.random.randint(next(keys), (X,), 0, V - n_added)
  words = normal(V - n_added, E, scale=2 * E**-0.5), normal(V - n_added)
  weight_VE, bias_V = cross_entropy.pad_vocabulary(*words)
  hidden_XE, weight_VE = (
    jnp.asarray(x, dtype) for x in (normal(X, E), weight_VE)
  )
  return (hidden_XE, weight_VE, bias_V, normal(X)), targets_X


def _results(targets_X):
  """Losses and gradients of an implementation and operands, compiled."""

  def results(implementation, *operands):
    *operands, cotangent_X = operands
    loss_X, back = jax.vjp(
      lambda *x: cross_entropy.cross_entropy(
        *x, targets_X, implementation=implementation
      ),
      *operands,
    )
    return loss_X, *back(cotangent_X)

  return jax.jit(results, static_argnums=0)


def _assert_as_close_as_xla(case, slack):
  operands, targets_X = _operands(case)
  checks.assert_as_close_as_xla(
    *(_results(targets_X), operands, NAMES), slack=slack, least=1e-5
  )


@pytest.fixture
def on_hopper(monkeypatch):
  with checks.on_hopper(monkeypatch, lib, '_LEAST_BLOCKS'):
    yield


@pytest.fixture
def interpreted(on_hopper, monkeypatch):
  from txl_jax.ops import mosaic_cross_entropy as kernels
  from txl_jax.ops import mosaic_products, mosaic_tiles

  both = kernels._forward, kernels._backward
  modules = mosaic_products, mosaic_tiles
  with checks.interpreted(monkeypatch, modules, both):
    yield


@checks.new_enough
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_losses_and_gradients_interpreted(case, interpreted, capfd):
  # How a CPU rounds products of bfloat16 depends on the CPU.
  _assert_as_close_as_xla(case, slack=1.1)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@checks.new_enough
def test_tails_of_several_chunks_or_none(interpreted):
  X, D, V = 300, 64, 256
  keys = iter(jax.random.split(jax.random.key(1), 6))
  hidden_XD, *words = (
    jax.random.normal(next(keys), (n, D)).astype(jnp.bfloat16)
    for n in (X, V, V)
  )
  tails = tuple(Tail(w_VD, jnp.zeros(V), None) for w_VD in words)
  tail_X = (jax.random.uniform(next(keys), (X,)) < 0.7).astype(jnp.int32)
  targets_X = jax.random.randint(next(keys), (X,), 0, V)
  cotangent_X = jax.random.normal(next(keys), (X,))

  @functools.partial(jax.jit, static_argnums=0)
  def results(implementation, hidden_XD, tails):
    def losses(hidden_XD, tails):
      operands = hidden_XD, tails, tail_X, targets_X
      return tail_cross_entropy(
        (128, 128), *operands, implementation=implementation
      )

    loss_X, back = jax.vjp(losses, hidden_XD, tails)
    gradient = back(cotangent_X.astype(loss_X.dtype))
    return [loss_X, *jax.tree.leaves(gradient)]

  names = ('loss', 'hidden', 'words', 'bias', 'no words', 'no bias')
  checks.assert_as_close_as_xla(
    results, (hidden_XD, tails), names, slack=1.1, least=1e-5
  )
  # Nothing is in the second tail.
  *_, d_words, d_bias = results('auto', hidden_XD, tails)
  assert not d_words.any() and not d_bias.any()


@checks.needs_hopper
@pytest.mark.parametrize(
  'case', [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE]
)
def test_it_is_as_close_as_xla_to_float32(case, on_hopper):
  with jax.default_matmul_precision('highest'):
    _assert_as_close_as_xla(case, slack=1.05)


@checks.new_enough
def test_it_compiles_for_an_h200(on_hopper):
  operands, targets_X = _operands(CASES['padded rows, width and words'])
  assert checks.kernels_for_an_h200(_results(targets_X), operands) == 2


@checks.new_enough
def test_no_operand_is_a_part_of_an_array(on_hopper):
  (hidden_XE, weight_VE, bias_V, _), targets_X = _operands(
    CASES['several blocks']
  )

  def losses(hidden_XE, weight_VE, biases):
    bias_V = biases[37 : 37 + len(weight_VE)]
    return cross_entropy.cross_entropy(hidden_XE, weight_VE, bias_V, targets_X)

  biases = jnp.pad(bias_V, (37, 0))
  text = checks.text_for_an_h200(losses, hidden_XE, weight_VE, biases)
  (operands,) = re.findall(r'custom_call @mosaic_gpu\w*\((.*?)\)', text)
  for operand in operands.split(', '):
    assert not re.search(rf'{operand} = stablehlo.(slice|convert)', text)


@pytest.mark.parametrize('mesh', checks.MESHES)
def test_both_passes_take_the_kernels_of_each_shard(
  mesh, on_hopper, monkeypatch
):
  taken = []

  def log_sum_exps(*operands):
    taken.append('forward')
    return jax.nn.logsumexp(lib._logits(*operands), axis=-1)

  def gradients(*operands):
    taken.append('backward')
    return lib._gradients_by_xla(*operands)

  monkeypatch.setattr(lib, '_log_sum_exps_by_kernel', log_sum_exps)
  monkeypatch.setattr(lib, '_gradients_by_kernel', gradients)
  # Chunks of 128 rows, and of 256 with kernels.
  monkeypatch.setattr(cross_entropy, 'LOGITS_AT_ONCE', 2**14)
  monkeypatch.setattr(cross_entropy, '_GRADIENTS_AT_ONCE', 2**15)
  X, E, V = 2048, 16, 128
  (hidden_XE, weight_VE, *others), targets_X = _operands((X, E, V, 0))
  # As parameters are stored: so are their gradients summed.
  operands = hidden_XE, weight_VE.astype(jnp.float32), *others

  def results(implementation, hidden_XE, *others):
    def loss(hidden_XE, *words):
      run = shards.per_row_shard(
        functools.partial(
          cross_entropy.cross_entropy, implementation=implementation
        ),
        (0, None, None, 0),
        0,
      )
      return run(hidden_XE, *words, targets_X)

    *words, cotangent_X = others
    loss_X, back = jax.vjp(loss, hidden_XE, *words)
    return loss_X, *back(cotangent_X)

  checks.assert_the_same(results, operands, mesh, tolerance=1e-3)
  assert set(taken) == {'forward', 'backward'}


def _taken(rows, *, V=20_096, dtype=jnp.bfloat16, name='auto'):
  hidden_XE = jax.ShapeDtypeStruct((rows, 512), dtype)
  return lib.takes_kernels(name, hidden_XE, V)


@pytest.mark.parametrize(
  'change',
  [dict(name='xla'), dict(dtype=jnp.float32), dict(V=204), dict(V=20_000)],
)
def test_what_kernels_cannot_do_is_left_to_xla(change, monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  assert _taken(2000)
  assert not _taken(2000, **change)


def test_a_few_rows_are_left_to_xla(monkeypatch):
  monkeypatch.setattr(hopper, 'on_hopper', lambda: True)
  assert [_taken(rows) for rows in (1, 128, 512)] == [False, False, True]
