#!/usr/bin/env python3
"""A run as a JobSet of Kubernetes, on TPU slices or on hosts with GPUs.

  launch/kubernetes.py enwik8 --image=IMAGE --accelerator=tpu-v6e-slice \\
    --topology=4x4 --claim=runs -- \\
    txl train --config=experiments/enwik8_large.py --workdir=/runs/enwik8

The image has txl (launch/Dockerfile); the claim is a volume that all hosts can
write, and is mounted as /runs. The cluster needs JobSet:
https://jobset.sigs.k8s.io. Two hosts of 8 GPUs each are --accelerator=gpu
--topology=2x8, or GKE's name of the GPU, such as nvidia-h100-80gb.

A run that is told to stop saves and is started again, however often that is;
one that fails, as often as --restarts says.
"""

import argparse
import dataclasses
import math
import re
import subprocess
import sys
from typing import Any

import yaml

from txl_jax.errors import InputError

PORT = 8476
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
EXCLUSIVE = 'alpha.jobset.sigs.k8s.io/exclusive-topology'


@dataclasses.dataclass(frozen=True)
class Hosts:
  """Where the run lies.

  Attributes:
    accelerator: GKE's name of the TPU or GPU, or 'gpu'.
    topology: chips along each axis of a slice; of GPUs, hosts x GPUs of a host.
    per_host: chips of a host.
    slices: how many slices.
  """

  accelerator: str
  topology: tuple[int, ...]
  per_host: int
  slices: int = 1

  def __post_init__(self):
    if self.chips % self.per_host:
      raise InputError(
        f'--topology has {self.chips} chips, which is no multiple of '
        f'--chips-per-host {self.per_host}'
      )
    if self.slices > 1 and not self.on_tpus:
      raise InputError('--slices is for TPUs; hosts are part of --topology')

  @property
  def on_tpus(self) -> bool:
    """Whether these are TPUs."""
    return self.accelerator.startswith('tpu')

  @property
  def chips(self) -> int:
    """Of a slice."""
    return math.prod(self.topology)

  @property
  def count(self) -> int:
    """Hosts of a slice."""
    return self.chips // self.per_host


def render(
  name: str, hosts: Hosts, command: list[str], options: argparse.Namespace
) -> dict[str, Any]:
  """The manifest; options are those of the command line."""
  metadata: dict[str, Any] = {'name': name}
  if hosts.on_tpus:  # each slice is a node pool of its own
    metadata['annotations'] = {EXCLUSIVE: 'cloud.google.com/gke-nodepool'}
  job = {
    'completionMode': 'Indexed',
    'parallelism': hosts.count,
    'completions': hosts.count,
    'backoffLimit': 0,
    'podFailurePolicy': {'rules': _stopped_rules()},
    'template': {'spec': _pod(name, hosts, command, options)},
  }
  replicated = {
    'name': 'run',
    'replicas': hosts.slices,
    'template': {'spec': job},
  }
  stopped = {
    'name': 'stopped',
    'action': 'RestartJobSetAndIgnoreMaxRestarts',
    'onJobFailureReasons': ['PodFailurePolicy'],
  }
  failures = {'maxRestarts': options.restarts, 'rules': [stopped]}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'network': {'enableDNSHostnames': True},
      'failurePolicy': failures,
      'replicatedJobs': [replicated],
    },
  }


def _stopped_rules() -> list[dict]:
  """What tells a run that was stopped from one that failed."""
  codes = {'containerName': 'txl', 'operator': 'In', 'values': [77]}
  disrupted = {'type': 'DisruptionTarget', 'status': 'True'}
  return [
    {'action': 'FailJob', 'onExitCodes': codes},
    {'action': 'FailJob', 'onPodConditions': [disrupted]},
  ]


def _pod(
  name: str, hosts: Hosts, command: list[str], options: argparse.Namespace
) -> dict[str, Any]:
  resource = 'google.com/tpu' if hosts.on_tpus else 'nvidia.com/gpu'
  memory = {'medium': 'Memory'}  # NCCL and the loaders want more than 64 MB
  container = {
    'name': 'txl',
    'image': options.image,
    'command': command,
    'resources': {'limits': {resource: hosts.per_host}},
    'volumeMounts': [
      {'name': 'runs', 'mountPath': '/runs'},
      {'name': 'memory', 'mountPath': '/dev/shm'},
    ],
  }
  if not hosts.on_tpus:  # GKE tells TPUs itself where the others are
    container['env'] = _addresses(name, hosts)
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': options.grace_seconds,
    'containers': [container],
    'volumes': [
      {'name': 'runs', 'persistentVolumeClaim': {'claimName': options.claim}},
      {'name': 'memory', 'emptyDir': memory},
    ],
  }
  if selector := _selector(hosts, options.spot):
    pod['nodeSelector'] = selector
  if options.spot:
    toleration = {'key': 'cloud.google.com/gke-spot', 'operator': 'Exists'}
    pod['tolerations'] = [toleration]
  return pod


def _addresses(name: str, hosts: Hosts) -> list[dict]:
  address = f'{name}-run-0-0.{name}:{PORT}'
  index = {'fieldRef': {'fieldPath': INDEX}}
  return [
    {'name': 'JAX_COORDINATOR_ADDRESS', 'value': address},
    {'name': 'JAX_NUM_PROCESSES', 'value': str(hosts.count)},
    {'name': 'JAX_PROCESS_ID', 'valueFrom': index},
  ]


def _selector(hosts: Hosts, spot: bool) -> dict[str, str]:
  """Of GKE's nodes."""
  gke = 'cloud.google.com/gke-'
  selector = {gke + 'spot': 'true'} if spot else {}
  if hosts.on_tpus:
    selector[gke + 'tpu-accelerator'] = hosts.accelerator
    selector[gke + 'tpu-topology'] = 'x'.join(map(str, hosts.topology))
  elif hosts.accelerator != 'gpu':
    selector[gke + 'accelerator'] = hosts.accelerator
  return selector


def check(manifest: dict[str, Any], hosts: Hosts, save_seconds: int) -> None:
  """Raises an InputError if the parts of a manifest do not fit together."""
  (replicated,) = manifest['spec']['replicatedJobs']
  job = replicated['template']['spec']
  pod = job['template']['spec']
  (chips,) = pod['containers'][0]['resources']['limits'].values()
  grace = pod['terminationGracePeriodSeconds']
  if job['parallelism'] * chips != hosts.chips:
    raise InputError(f'{job["parallelism"]} hosts x {chips} != {hosts.chips}')
  if job['completions'] != job['parallelism']:
    raise InputError('completions must be parallelism: all hosts are needed')
  if grace <= save_seconds:
    above = f'--grace-seconds must be above --save-seconds {save_seconds}'
    raise InputError(f'{above}, found {grace}')


def check_rows(command: list[str], chips: int) -> None:
  """Raises an InputError if the rows of a training run do not divide."""
  if command[:2] != ['txl', 'train']:
    return
  from txl_jax.commands.arguments import read_config

  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--config', required=True)
  parser.add_argument('--workdir', required=True)
  known, overrides = parser.parse_known_args(command[2:])
  config = read_config(known.config, overrides)
  groups = chips // config.mesh.tensor if config.mesh.tensor > 0 else 1
  for section in ('train', 'eval'):
    rows = getattr(config, section).batch_size
    if rows % groups:
      raise InputError(
        f'config.{section}.batch_size must be a multiple of {groups}, the '
        f'groups of rows on {chips} chips, found {rows}'
      )


def _topology(text: str) -> tuple[int, ...]:
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', text):
    raise argparse.ArgumentTypeError(f'expected 4x4 or 2x2x4, found {text!r}')
  return tuple(map(int, text.split('x')))


def _name(text: str) -> str:
  # The names of pods are longer by the numbers of job and pod, and a mark.
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', text):
    raise argparse.ArgumentTypeError(
      f'expected up to 40 small letters, digits and hyphens, found {text!r}'
    )
  return text


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='launch/kubernetes.py',
    usage='%(prog)s [--dry-run] NAME OPTION... -- COMMAND [ARGUMENT...]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('name', type=_name, help='of the JobSet')
  add('--image', required=True, help='with txl')
  add('--accelerator', required=True, help='such as tpu-v6e-slice, or gpu')
  add('--topology', required=True, type=_topology, help='such as 4x4')
  add('--claim', required=True, help='the volume that becomes /runs')
  add('--slices', type=int, default=1, help='of that topology, of TPUs')
  add('--chips-per-host', type=int, help='of TPUs; 4, or all if fewer')
  add('--spot', action='store_true', help='capacity of GKE')
  add('--restarts', type=int, default=5, help='after failures')
  add('--save-seconds', type=int, default=60, help='that saving takes')
  add('--grace-seconds', type=int, default=180, help='between TERM and KILL')
  add('--dry-run', action='store_true', help='print the manifest instead')
  return parser


def _hosts(options: argparse.Namespace) -> Hosts:
  topology = options.topology
  if options.accelerator.startswith('tpu'):
    per_host = options.chips_per_host or min(4, math.prod(topology))
  elif len(topology) != 2:
    raise InputError('--topology of GPUs must be HOSTSxGPUS, such as 2x8')
  else:
    per_host = topology[1]
  return Hosts(options.accelerator, topology, per_host, options.slices)


def _apply(text: str) -> int:
  command = ['kubectl', 'apply', '--request-timeout=60s', '--filename=-']
  try:
    return subprocess.run(command, input=text, text=True).returncode
  except FileNotFoundError:
    raise InputError(
      'kubectl is not here: https://kubernetes.io/docs/tasks/tools'
    ) from None


def main(argv: list[str]) -> int:
  """Sends the manifest to the cluster; the exit code is 2 for bad input."""
  split = argv.index('--') if '--' in argv else len(argv)
  options, command = _parser().parse_args(argv[:split]), argv[split + 1 :]
  try:
    if not command:
      raise InputError('a command is missing behind --; see --help')
    hosts = _hosts(options)
    check_rows(command, hosts.chips * hosts.slices)
    manifest = render(options.name, hosts, command, options)
    check(manifest, hosts, options.save_seconds)
    text = yaml.safe_dump(manifest, sort_keys=False)
    if not options.dry_run:
      return _apply(text)
    print(text, end='')
    return 0
  except InputError as error:
    print(f'kubernetes.py: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
