"""`launch/kubernetes.py`: manifests that fit their topology and the schema."""

import contextlib
import copy
import io
import json
import os
import runpy
import subprocess
import sys

import pytest
import yaml
from runs import LAUNCH, ROOT, write_script
from schema import SCHEMA, problems

from txl_jax.errors import InputError

OPTIONS = ['--image=registry/txl:1', '--claim=runs']
COMMAND = ['--', 'txl', 'train', '--config=experiments/enwik8_large.py']
COMMAND += ['--workdir=/runs/a', '--config.eval.batch_size=32']
# Accelerator and topology, other options, hosts of a slice, chips of a host.
PLACES = [
  ('tpu-v6e-slice', '4x4', ['--slices=2', '--spot'], 4, 4),
  ('tpu-v5p-slice', '2x2x4', [], 4, 4),
  ('tpu-v5-lite-podslice', '2x4', ['--chips-per-host=8'], 1, 8),
  ('nvidia-h100-80gb', '2x8', [], 2, 8),
]


SCRIPT = runpy.run_path(str(LAUNCH / 'kubernetes.py'))


def _run(*arguments: str) -> tuple[int, str, str]:
  """Exit code, output and errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    with contextlib.chdir(ROOT):
      try:
        code = SCRIPT['main'](list(arguments))
      except SystemExit as end:
        code = end.code
  return code, out.getvalue(), err.getvalue()


def manifest(accelerator, topology, options, *_) -> dict:
  """Of a place, as the launcher prints it."""
  place = [f'--accelerator={accelerator}', f'--topology={topology}']
  code, out, err = _run('--dry-run', 'ab', *OPTIONS, *place, *options, *COMMAND)
  assert code == 0, err
  return yaml.safe_load(out)


@pytest.fixture(scope='module')
def manifests() -> list[dict]:
  return [manifest(*place) for place in PLACES]


def _parts(manifest: dict) -> tuple[dict, dict, dict]:
  """The job of a slice, its pod, its container."""
  (replicated,) = manifest['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  return job, pod, pod['containers'][0]


def test_manifests_follow_the_schema(manifests):
  schema = json.loads(SCHEMA.read_text())
  for each in manifests:
    assert not problems(each, schema)
  for change in ('spec', 'metadata'):
    wrong = copy.deepcopy(manifests[0])
    wrong[change]['nonesuch'] = 1
    assert problems(wrong, schema)
  wrong = copy.deepcopy(manifests[0])
  _parts(wrong)[0]['completions'] = '4'
  _parts(wrong)[2]['imagePullPolice'] = 'Always'
  del _parts(wrong)[2]['name']
  assert len(problems(wrong, schema)) == 3


def test_hosts_and_chips_are_those_of_the_topology(manifests):
  for place, each in zip(PLACES, manifests):
    job, pod, container = _parts(each)
    (chips,) = container['resources']['limits'].values()
    assert (job['parallelism'], chips) == place[3:]
    assert job['completions'] == job['parallelism']
    assert pod['terminationGracePeriodSeconds'] > 60
    assert container['command'] == COMMAND[1:]
    (rule, _) = job['podFailurePolicy']['rules']
    assert rule['onExitCodes']['values'] == [77]
    assert rule['onExitCodes']['containerName'] == container['name']
  assert manifests[0]['spec']['replicatedJobs'][0]['replicas'] == 2
  selector = _parts(manifests[1])[1]['nodeSelector']
  assert selector['cloud.google.com/gke-tpu-topology'] == '2x2x4'


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('parallelism', 3, '3 hosts x 4 != 16'),
    ('completions', 3, 'completions must be parallelism'),
  ],
)
def test_a_manifest_that_does_not_fit_is_found(manifests, field, value, words):
  wrong = copy.deepcopy(manifests[0])
  hosts = SCRIPT['Hosts']('tpu-v6e-slice', (4, 4), 4)
  SCRIPT['check'](wrong, hosts, 60)
  _parts(wrong)[0][field] = value
  with pytest.raises(InputError, match=words):
    SCRIPT['check'](wrong, hosts, 60)


def test_hosts_with_gpus_are_told_where_the_first_one_is(manifests):
  *tpus, gpus = manifests
  assert not any('env' in _parts(each)[2] for each in tpus)
  address, count, index = _parts(gpus)[2]['env']
  assert address['value'] == 'ab-run-0-0.ab:8476'
  assert count == {'name': 'JAX_NUM_PROCESSES', 'value': '2'}
  assert 'completion-index' in index['valueFrom']['fieldRef']['fieldPath']


@pytest.mark.parametrize(
  'accelerator, topology, options, words',
  [
    ('tpu-v6e-slice', '4', [], "expected 4x4 or 2x2x4, found '4'"),
    ('tpu-v6e-slice', '3x3', [], '9 chips, which is no multiple of'),
    ('gpu', '2x2x2', [], 'must be HOSTSxGPUS'),
    ('gpu', '2x8', ['--slices=2'], '--slices is for TPUs'),
    ('gpu', '2x8', ['--save-seconds=200'], 'above --save-seconds 200, found'),
    ('gpu', '3x8', [], 'config.train.batch_size must be a multiple of 24'),
  ],
)
def test_what_does_not_fit_is_refused(accelerator, topology, options, words):
  place = [f'--accelerator={accelerator}', f'--topology={topology}']
  code, out, err = _run('--dry-run', 'ab', *OPTIONS, *place, *options, *COMMAND)
  assert code == 2 and not out
  assert words in err.splitlines()[-1]


def test_the_manifest_goes_to_kubectl(tmp_path, monkeypatch, capfd):
  write_script(tmp_path / 'bin' / 'kubectl', 'echo "$@" && cat && exit 5')
  place = ['--accelerator=gpu', '--topology=1x8']
  monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=os.pathsep)
  assert _run('ab', *OPTIONS, *place, '--', 'true')[0] == 5
  first, _, text = capfd.readouterr().out.partition('\n')
  assert first == 'apply --request-timeout=60s --filename=-'
  assert yaml.safe_load(text)['kind'] == 'JobSet'
  monkeypatch.setenv('PATH', str(tmp_path))
  code, _, err = _run('ab', *OPTIONS, *place, '--', 'true')
  assert code == 2 and 'kubectl is not here' in err
  code, _, err = _run('ab', *OPTIONS, *place)
  assert code == 2 and 'a command is missing' in err


def test_help_shows_a_command():
  done = subprocess.run(
    [sys.executable, LAUNCH / 'kubernetes.py', '--help'],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert 'launch/kubernetes.py enwik8 --image=' in done.stdout
