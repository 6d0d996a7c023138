"""A Slurm of one node on this machine, without installing anything.

Debian's packages are unpacked into a folder, and the two daemons run from it.
"""

import contextlib
import getpass
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

PACKAGES = (
  'slurmctld slurmd slurm-client slurm-wlm-basic-plugins libhwloc15 libmunge2'
)
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A job that goes back into the queue waits as long as a credential holds.
AuthInfo=cred_expire=5
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Slurm:
  """The commands of the cluster, in its environment."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._root = folder / 'root'
    plugins = next(self._root.glob('usr/lib/*/slurm-wlm'))
    libraries = f'{plugins}:{plugins.parent}'
    names = [name for name in os.environ if not name.startswith('SLURM_')]
    self.environment = {
      **{name: os.environ[name] for name in names},
      'SLURM_CONF': str(folder / 'slurm.conf'),
      'LD_LIBRARY_PATH': libraries,
      'PATH': f'{self._root / "usr/bin"}:{os.environ["PATH"]}',
    }
    text = CONFIGURATION.format(
      host=platform.node().split('.')[0],
      ports=_free_ports(),
      user=getpass.getuser(),
      plugins=plugins,
      folder=folder,
    )
    (folder / 'slurm.conf').write_text(text)
    for name in ('state', 'spool'):
      (folder / name).mkdir()

  def run(self, *command: str, **variables: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
      command,
      env=self.environment | variables,
      cwd=self._folder,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  def end(self, job: str, seconds: float) -> str:
    """Waits until a job has ended, and tells how: COMPLETED, FAILED, ..."""
    ends = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL'}
    wait_until(lambda: self._state(job) in ends, seconds)
    return self._state(job)

  def _state(self, job: str) -> str:
    facts = self.run('scontrol', '--oneliner', 'show', 'job', job).split()
    return dict(fact.split('=', 1) for fact in facts if '=' in fact)['JobState']

  @contextlib.contextmanager
  def running(self) -> Iterator['Slurm']:
    """While inside, the daemons run."""
    programs = self._root / 'usr/sbin'
    stepper = ['-d', str(programs / 'slurmstepd-wlm')]
    daemons = [
      self._daemon(str(programs / 'slurmctld-wlm'), '-D'),
      self._daemon(str(programs / 'slurmd-wlm'), '-D', *stepper),
    ]
    try:
      wait_until(lambda: 'idle' in self.run('sinfo', '-h', '-o', '%T'), 30)
      yield self
    finally:
      self.run('scancel', '--full', '--user', getpass.getuser())
      time.sleep(1)
      for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(timeout=30)

  def _daemon(self, *command: str) -> subprocess.Popen:
    with (self._folder / 'daemons.log').open('a') as log:
      return subprocess.Popen(
        command, env=self.environment, stdout=log, stderr=log
      )


def unpack(folder: pathlib.Path) -> None:
  """Debian's packages in `root`; skips the test where they cannot be had."""
  if not (shutil.which('apt-get') and shutil.which('dpkg')):
    pytest.skip('Slurm comes as packages of Debian, and this is none')
  command = ['apt-get', 'download', *PACKAGES.split()]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'apt-get download gets no Slurm: {done.stderr.strip()}')
  for package in folder.glob('*.deb'):
    subprocess.run(['dpkg', '-x', package, folder / 'root'], check=True)


def wait_until(happened, seconds: float) -> None:
  """Looks again and again; fails if it has not happened in time."""
  end = time.monotonic() + seconds
  while not happened():
    assert time.monotonic() < end, 'it did not happen in time'
    time.sleep(0.1)


def _free_ports() -> list[int]:
  with socket.socket() as one, socket.socket() as two:
    for each in (one, two):
      each.bind(('localhost', 0))
    return [each.getsockname()[1] for each in (one, two)]
