"""Processes find each other, share the rows, and stop together."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import pytest

from txl_jax.errors import InputError
from txl_jax.parallel import processes

PLAIN = {
  processes.ADDRESS: 'host:1234',
  processes.COUNT: '2',
  processes.ID: '1',
}
SLURM = {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3'}
OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': '2'}
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}


@pytest.fixture(autouse=True)
def started(monkeypatch) -> list[dict]:
  """What JAX is asked to start, in surroundings that say nothing."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_CO', 'TPU_')):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **given: calls.append(given)
  )
  yield calls
  jax.config.update('jax_enable_preemption_service', True)


def _set(monkeypatch, variables: dict[str, str]) -> None:
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


def test_one_process_starts_nothing(started, monkeypatch):
  processes.start_processes()
  _set(monkeypatch, {**POD, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '1'})
  processes.start_processes()
  assert not started
  assert processes.is_main() and not processes.stop_requested(1)
  processes.barrier('alone')


def test_the_variables_of_plain_hosts(started, monkeypatch):
  _set(monkeypatch, PLAIN)
  processes.start_processes(preemption=True)
  (given,) = started
  assert given['coordinator_address'] == 'host:1234'
  assert (given['num_processes'], given['process_id']) == (2, 1)
  assert jax.config.jax_enable_preemption_service
  # Another command leaves SIGTERM as it is.
  processes.start_processes()
  assert not jax.config.jax_enable_preemption_service


@pytest.mark.parametrize(
  'changes, words',
  [
    ({processes.ID: ''}, 'JAX_PROCESS_ID is not set'),
    ({processes.ADDRESS: '', processes.COUNT: ''}, 'COUNT|ADDRESS and JAX_NUM'),
    ({processes.COUNT: 'two'}, "JAX_NUM_PROCESSES must be .* found 'two'"),
    ({processes.ID: '-1'}, "JAX_PROCESS_ID must be .* found '-1'"),
    ({processes.ID: '2'}, 'must be below JAX_NUM_PROCESSES 2, found 2'),
    ({processes.ADDRESS: 'host'}, "must be HOST:PORT .* found 'host'"),
  ],
)
def test_wrong_variables_are_refused(started, monkeypatch, changes, words):
  _set(monkeypatch, PLAIN | changes)
  with pytest.raises(InputError, match=words):
    processes.start_processes()
  assert not started


@pytest.mark.parametrize(
  'variables',
  [
    SLURM,
    {**OPEN_MPI, 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:1'},
    {**SLURM, **POD},
  ],
)
def test_clusters_are_left_to_jax(started, monkeypatch, variables):
  _set(monkeypatch, variables)
  processes.start_processes()
  (given,) = started
  assert given['cluster_detection_method'] is None


@pytest.mark.parametrize(
  'variables, package',
  [
    (OPEN_MPI, 'mpi4py'),
    ({**POD, 'JOB_COMPLETION_INDEX': '0'}, 'kubernetes'),
  ],
)
def test_what_a_cluster_needs_is_named(
  started, monkeypatch, variables, package
):
  _set(monkeypatch, variables)
  monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(InputError, match=f'the package {package}, which is not'):
    processes.start_processes()
  monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda _: True)
  processes.start_processes()
  method = 'mpi4py' if package == 'mpi4py' else None
  (given,) = started
  assert given['cluster_detection_method'] == method


# Rows 0 to 7 over meshes whose row groups lie within and across processes.
TOGETHER = """
import time
import jax, numpy as np
from txl_jax.config import MeshConfig
from txl_jax.parallel import processes
from txl_jax.parallel.loading import local_rows, place
from txl_jax.parallel.mesh import make_mesh

processes.start_processes(preemption=True)
for sizes in ((-1, 1, 1), (2, 2, 2), (1, 1, 8)):
  mesh = make_mesh(MeshConfig(*sizes))
  rows = local_rows(mesh, 8)
  row_B = place(mesh, np.arange(8)[rows], 8)
  total = jax.jit(lambda row_B: (row_B ** 2).sum())(row_B)
  found = jax.process_index(), sizes, rows.start, rows.stop, int(total)
  # In one piece: what Gloo says comes in between.
  print(' '.join(map(str, ('rows', *found))) + '\\n', end='', flush=True)
processes.barrier('ready')
print('ready\\n', end='', flush=True)
step = 0
while not processes.stop_requested(step):
  step += 1
  time.sleep(0.01 * (1 + jax.process_index()))
print('stopped at', step)
"""


@pytest.fixture
def start() -> Iterator[Callable]:
  """Starts programs with variables of the environment; the test ends them."""
  running = []

  def start(program: str, **variables: str) -> subprocess.Popen:
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', **variables}
    running.append(
      subprocess.Popen(
        [sys.executable, '-c', program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
    return running[-1]

  yield start
  for process in running:
    process.kill()
    process.communicate()


def _wait_until_ready(process: subprocess.Popen) -> list[str]:
  """What it has printed about rows until then."""
  lines = []
  for line in process.stdout:
    if 'ready' in line:
      # What Gloo says may stand beside it in a line.
      return [line[line.index('rows') :] for line in lines if 'rows' in line]
    lines.append(line)
  pytest.fail(''.join(lines))


def test_two_processes_share_rows_and_stop_at_the_same_step(start):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  plain = {processes.ADDRESS: address, processes.COUNT: '2'}
  both = [
    start(TOGETHER, JAX_NUM_CPU_DEVICES='4', **plain, **{processes.ID: f'{i}'})
    for i in range(2)
  ]
  for i, process in enumerate(both):
    assert _wait_until_ready(process) == [
      f'rows {i} (-1, 1, 1) {4 * i} {4 * i + 4} 140\n',
      f'rows {i} (2, 2, 2) {4 * i} {4 * i + 4} 140\n',
      f'rows {i} (1, 1, 8) 0 8 140\n',
    ]
  both[1].send_signal(signal.SIGTERM)
  ends = [process.communicate(timeout=60)[0] for process in both]
  steps = [end.rpartition('stopped at ')[2] for end in ends]
  assert steps[0] == steps[1] and int(steps[0]) > 0, ends
  assert [process.returncode for process in both] == [0, 0]


ALONE = """
import os, time
from txl_jax.parallel import processes
processes.start_processes(preemption=True)
import jax
assert jax.process_count() == 1 and jax.device_count() == 2
print('ready\\n', end='', flush=True)
step = 0
while not processes.stop_requested(step):
  step += 1
  time.sleep(0.01)
print('stopped')
"""


def test_a_process_alone_notices_sigterm_behind_a_proxy(start):
  proxy = 'http://127.0.0.1:9'
  process = start(
    ALONE, JAX_NUM_CPU_DEVICES='2', http_proxy=proxy, https_proxy=proxy
  )
  _wait_until_ready(process)
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=60)[0].endswith('stopped\n')
  assert process.returncode == 0


@pytest.mark.parametrize('process', [0, 1])
def test_processes_that_do_not_find_each_other_say_so(start, process):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  alone = start(
    'from txl_jax.parallel import processes; processes.start_processes()',
    **{processes.ADDRESS: address, processes.COUNT: '2'},
    **{processes.ID: str(process), processes.PATIENCE: '1'},
  )
  said = alone.communicate(timeout=60)[0]
  assert alone.returncode == 2, said
  assert 'have not found each other for 1 s: all must have star' in said
  assert f'{address} be reachable' in said
