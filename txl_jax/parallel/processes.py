"""The processes of a run: how they find each other, and how they stop.

A run is one process, or one on each host, each with the devices of its host.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from txl_jax.errors import InputError

ADDRESS = 'JAX_COORDINATOR_ADDRESS'
COUNT = 'JAX_NUM_PROCESSES'
ID = 'JAX_PROCESS_ID'
PATIENCE = 'TXL_START_SECONDS'
DETECTED = {'cluster_detection_method': None}  # JAX finds out itself which


def start_processes(*, preemption: bool = False) -> None:
  """Joins the other processes of the run, if there are any.

  Call it before anything else of JAX. It knows, in this order:

  - plain hosts: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0), the same program on each;
  - Slurm, and Open MPI before 5 (from 5 on with mpi4py): one process for each
    GPU, unless JAX_LOCAL_DEVICE_IDS lists several;
  - TPU machines: one process for each host;
  - Kubernetes: indexed jobs, with `jax[k8s]`.

  Processes that do not find each other within TXL_START_SECONDS (300) end with
  code 2 and say so, where JAX would abort.

  Args:
    preemption: let SIGTERM be noticed by `stop_requested` instead of ending the
      process. A process that is alone and has used JAX already stays as it is.

  Raises:
    InputError: if only some of the three variables are set, or to something
      else than they should, or the processes do not find each other.
  """
  if jax.distributed.is_initialized():
    return
  found = _plain_hosts() or _cluster()
  if found.get('num_processes') == 1:
    found = {}
  if found:
    _join(preemption, found)
  elif preemption:
    _join_alone()


def stop_requested(step: int) -> bool:
  """Whether all processes stop after this step, as one of them got SIGTERM.

  After `start_processes(preemption=True)`; else never. All processes ask after
  every step, with the same numbers, and all get the same answer.
  """
  listening = jax.config.jax_enable_preemption_service
  if not (listening and jax.distributed.is_initialized()):
    return False
  return multihost_utils.reached_preemption_sync_point(step)


def is_main() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes have come to the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _plain_hosts() -> dict[str, Any]:
  """What the three variables say; {} if none is set."""
  found = {name: os.environ.get(name) for name in (ADDRESS, COUNT, ID)}
  missing = [name for name, value in found.items() if not value]
  if len(missing) == len(found):
    return {}
  if missing:
    raise InputError(
      f'{ADDRESS}, {COUNT} and {ID} belong together, but '
      f'{" and ".join(missing)} is not set'
    )
  if not found[ADDRESS].rpartition(':')[2].isdecimal():
    raise InputError(
      f'{ADDRESS} must be HOST:PORT of process 0, found {found[ADDRESS]!r}'
    )
  count = _whole_number(COUNT, low=1)
  process = _whole_number(ID, low=0)
  if process >= count:
    raise InputError(f'{ID} must be below {COUNT} {count}, found {process}')
  return {
    'coordinator_address': found[ADDRESS],
    'num_processes': count,
    'process_id': process,
    'cluster_detection_method': 'deactivate',
  }


def _whole_number(name: str, low: int) -> int:
  text = os.environ[name]
  if not text.isdecimal() or int(text) < low:
    raise InputError(
      f'{name} must be a whole number of at least {low}, found {text!r}'
    )
  return int(text)


def _cluster() -> dict[str, Any]:
  """How JAX asks the surroundings for the other processes; {} if it cannot.

  From the environment alone. JAX itself asks servers, which elsewhere than on
  the machines that have them takes minutes or fails.
  """
  if _tasks('OMPI_COMM_WORLD_SIZE') > 1:
    old = 'OMPI_MCA_orte_hnp_uri' in os.environ  # gone with version 5
    return DETECTED if old else _with_package('mpi4py', method='mpi4py')
  # Of the step: SLURM_NTASKS may be of a job in which this process is alone.
  if _tasks('SLURM_STEP_NUM_TASKS') > 1 or _on_tpus():
    return DETECTED
  # Pods of an indexed job; every other pod is alone.
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= os.environ.keys():
    return _with_package('kubernetes', method=None)
  return {}


def _with_package(package: str, method: str | None) -> dict[str, Any]:
  if not importlib.util.find_spec(package):
    raise InputError(
      f'the processes find each other with the package {package}, which is not '
      f'installed, or with {ADDRESS}, {COUNT} and {ID}, which are not set'
    )
  return {'cluster_detection_method': method}


def _tasks(name: str) -> int:
  value = os.environ.get(name, '')
  return int(value) if value.isdecimal() else 0


def _on_tpus() -> bool:
  # JAX chooses the platform when it is imported on a machine with TPUs.
  if 'tpu' not in (jax.config.jax_platforms or ''):
    return False
  workers = (
    'TPU_WORKER_HOSTNAMES',
    'TPU_PROCESS_ADDRESSES',
    'TPU_PROCESS_ADDRESSES_PATH',
  )
  # Without these, the hosts are listed by the metadata server, if there is one.
  listed = any(name in os.environ for name in workers)
  return listed or 'TPU_SKIP_MDS_QUERY' not in os.environ


def _join(preemption: bool, arguments: dict[str, Any]) -> None:
  # The service catches SIGTERM: only for those who ask whether it came.
  jax.config.update('jax_enable_preemption_service', preemption)
  seconds = _whole_number(PATIENCE, low=1) if PATIENCE in os.environ else 300
  try:
    with _patience(seconds, arguments):
      # Later than we do it, JAX aborts.
      jax.distributed.initialize(
        **arguments, initialization_timeout=seconds + 60
      )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      f'the processes of the run cannot find each other: {error}'
    ) from error


@contextlib.contextmanager
def _patience(seconds: int, arguments: dict[str, Any]) -> Iterator[None]:
  """Ends the process, in one sentence, if it is still inside then."""

  def give_up() -> None:
    address = arguments.get('coordinator_address', 'process 0')
    print(
      f'txl: the processes of the run have not found each other for {seconds} '
      f's: all must have started, and {address} be reachable from each',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)  # the main thread is inside JAX and cannot be called back

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _join_alone() -> None:
  """A service of our own, which notices SIGTERM."""
  folder = tempfile.mkdtemp(prefix='txl_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  # A socket in a folder of ours is open to nobody, and to no proxy either.
  address = f'unix:{folder}/socket'
  jax.config.update('jax_enable_preemption_service', True)
  jax.config.update('jax_check_proxy_envs', False)
  try:
    jax.distributed.initialize(
      address,
      num_processes=1,
      process_id=0,
      coordinator_bind_address=address,
      cluster_detection_method='deactivate',
      # Else a process that is suspended counts as dead when it goes on.
      heartbeat_timeout_seconds=365 * 24 * 3600,
    )
  except RuntimeError:  # JAX has been used already, by a notebook say.
    return


def agree(find: Callable[[], str | None]) -> str | None:
  """What the main process finds; the others wait for it and take its word."""
  if jax.process_count() == 1:
    return find()
  found = find() if is_main() else None
  said = np.zeros(1000, np.uint8)
  raw = (found or '').encode()[: said.size]
  said[: len(raw)] = np.frombuffer(raw, np.uint8)
  said = multihost_utils.broadcast_one_to_all(said)
  return bytes(said).rstrip(b'\0').decode(errors='ignore') or None


def total(value: float) -> float:
  """The sum over all processes, each of which must ask."""
  if jax.process_count() == 1:
    return value
  return float(multihost_utils.process_allgather(np.float64(value)).sum())


def gathered(tree: Any) -> Any:
  """Arrays that this process can use alone, from those of all processes."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)
