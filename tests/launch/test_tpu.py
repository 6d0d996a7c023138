"""`launch/tpu.sh`, with a gcloud that records, and fails on demand."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess

import pytest
from gcloud import COMMANDS, TABLE, flags_of
from runs import LAUNCH, write_script

TPU = str(LAUNCH / 'tpu.sh')
WHERE = ['--zone=us-east5-b', '--project=mine']
TYPE = ['--type=v6e-16', '--runtime=v2-alpha-tpuv6e', '--spot']
COMMAND = ['--', 'txl', 'train', '--config=a b']
RUN = ['run', 'ab', *WHERE, *TYPE, '--bucket=gs://b', *COMMAND]
# A call does what the first line of a file of its name says: a code and words.
FAKE = """
folder=$(dirname "$0")/..
for word; do
  case $word in
    create | describe | delete | scp) call=$word ;;
    --command=*tpu_worker.sh\\ *)
      call=${word#*tpu_worker.sh } && call=${call%% *} ;;
    --command=tail*) call=logs ;;
  esac
done
echo "$call" >>"$folder/calls"
printf '%q ' "$@" >>"$folder/commands" && echo >>"$folder/commands"
case $call in describe) answer='0 ACTIVE' ;; state) answer='0 state: 0' ;;
  *) answer=0 ;; esac
if [[ -s $folder/$call ]]; then
  answer=$(head -n 1 "$folder/$call")
  sed -i 1d "$folder/$call"
fi
words=${answer#* }
[[ $words == "$answer" ]] || echo -e "$words"
exit "${answer%% *}"
"""


def _tpu(*arguments: str, **options) -> subprocess.CompletedProcess:
  return subprocess.run(
    [TPU, *arguments], capture_output=True, text=True, timeout=60, **options
  )


class Cloud:
  """The gcloud that is not one."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    write_script(folder / 'bin' / 'gcloud', FAKE)

  def answers(self, **calls: list[str]) -> None:
    """What the first calls of a kind answer: exit code, and words."""
    for name, lines in calls.items():
      (self._folder / name).write_text('\n'.join(lines) + '\n')

  def start(self, *arguments: str) -> subprocess.Popen:
    path = f'{self._folder / "bin"}:{os.environ["PATH"]}'
    variables = {'PATH': path, 'TXL_POLL_SECONDS': '0', 'TMPDIR': '/tmp'}
    return subprocess.Popen(
      [TPU, *arguments],
      env=os.environ | variables,
      cwd=self._folder,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *arguments: str) -> tuple[int, list[str]]:
    """The exit code, and the lines of errors."""
    running = self.start(*arguments)
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors.splitlines()

  @property
  def calls(self) -> list[str]:
    return (self._folder / 'calls').read_text().split()

  @property
  def commands(self) -> list[str]:
    return (self._folder / 'commands').read_text().splitlines()


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


ONCE = 'create describe scp setup start describe state describe logs delete'


def test_a_dry_run_prints_what_a_run_executes(cloud):
  printed = _tpu('--dry-run', *RUN).stdout.splitlines()
  tpus = [line for line in printed if line.startswith('gcloud ')]
  code, errors = cloud.run(*RUN)
  assert (code, errors) == (0, [])
  assert cloud.calls == ONCE.split()
  assert [f'gcloud {line}' for line in cloud.commands] == tpus
  assert printed[2].startswith('git ') and printed[2].endswith('HEAD ')


def test_printed_commands_have_only_flags_that_gcloud_knows():
  table = json.loads(TABLE.read_text())
  seen = set()
  for capacity in ('--spot', '--reserved'):
    for line in _tpu('--dry-run', *RUN[:2], capacity, *RUN[2:]).stdout.split(
      '\n'
    ):
      words = shlex.split(line)
      if words[:3] == ['gcloud', 'compute', 'tpus']:
        command = ' '.join(words[3:5])
        seen.add(command)
        flags = [w.split('=')[0] for w in words if w.startswith('--')]
        assert set(flags) <= set(table[command]), line
  assert seen == set(COMMANDS)


@pytest.mark.slow
def test_the_recorded_flags_are_those_of_gcloud():
  if not shutil.which('gcloud'):
    pytest.skip('gcloud is not installed')
  table = json.loads(TABLE.read_text())
  for command in COMMANDS:
    # Other versions may know more.
    assert set(table[command]) <= set(flags_of(command))


def test_creation_is_tried_again(cloud):
  cloud.answers(
    create=['1 ERROR: UNAVAILABLE: try later', '0', '0'],
    describe=['0 WAITING_FOR_RESOURCES', '0 FAILED', '0 ACCEPTED', '1'],
  )
  code, errors = cloud.run(*RUN)
  assert code == 0
  assert cloud.calls.count('create') == 3
  assert 'UNAVAILABLE: try later' in errors[0]
  assert 'could not be provided' in errors[1]
  assert cloud.calls[-1] == 'delete'


def test_preemption_creates_again_and_goes_on(cloud):
  cloud.answers(
    describe=['0 ACTIVE', '0 ACTIVE', '0 SUSPENDED'],
    state=['0 state: running\\nstate: running'],
  )
  code, errors = cloud.run(*RUN)
  assert code == 0
  once = ONCE.split()
  preempted = [*once[:-3], 'describe', 'delete']
  assert cloud.calls == [*preempted, *once]
  starts = [line for line in cloud.commands if 'worker.sh\\ start' in line]
  assert len(starts) == 2 and starts[0] == starts[1]
  assert errors[0] == 'tpu.sh: ab was preempted (SUSPENDED)'


def test_a_run_that_saved_is_started_again(cloud):
  cloud.answers(
    state=['0 state: 77 x\\nstate: running', '0 state: 77 x\\nstate: 77 x']
  )
  code, errors = cloud.run(*RUN)
  assert code == 0
  assert errors == ['tpu.sh: stopped and saved; starting again']
  assert cloud.calls.count('start') == 2
  assert cloud.calls.count('create') == cloud.calls.count('delete') == 1


@pytest.mark.parametrize(
  'answers, words',
  [
    (
      dict(create=['1 ERROR: (gcloud) Quota limit V6E has been exceeded.']),
      'no quota for v6e-16 in us-east5-b: ERROR: (gcloud) Quota limit V6E',
    ),
    (
      dict(create=['1 ERROR: PERMISSION_DENIED: no']),
      'gcloud refuses to create ab: ERROR: PERMISSION_DENIED',
    ),
    (dict(create=['1 x'] * 9), 'cannot create ab in 5 tries: x'),
    (
      dict(setup=['255 ssh: no route'] * 9),
      'a worker of ab does not start in 5 tries: ssh: no route',
    ),
    (
      dict(setup=['3 FAULT: cannot write to gs://b']),
      'cannot write to gs://b',
    ),
    (dict(start=['255 refused'] * 9), 'cannot start on all workers of ab'),
    (dict(state=['255'] * 9), 'cannot reach all workers of ab any more'),
    (
      dict(state=['0 state: running\\nstate: 2 txl: not found each other']),
      'a worker ended with code 2 txl: not found each other',
    ),
  ],
)
def test_faults_end_in_a_sentence_and_delete(cloud, answers, words):
  cloud.answers(**answers)
  code, errors = cloud.run(*RUN)
  assert code == 1
  assert words in errors[-1]
  assert not [line for line in errors if 'COSTS MONEY' in line]
  if 'quota' not in words and 'refuses' not in words:
    assert cloud.calls[-1] == 'delete'


def test_no_capacity_ends_within_the_time_given(cloud):
  cloud.answers(describe=['0 WAITING_FOR_RESOURCES'] * 999)
  code, errors = cloud.run('create', 'ab', *WHERE, *TYPE, '--wait=1')
  assert code == 1
  assert errors == [
    'tpu.sh: no v6e-16 was free in us-east5-b within 1 s (see --wait)'
  ]
  assert cloud.calls[-1] == 'delete'


def test_a_signal_deletes_and_so_does_deleting_again(cloud):
  cloud.answers(
    state=['0 state: running'] * 9999, delete=['1 ERROR: busy', '0']
  )
  running = cloud.start(*RUN)
  while not (cloud._folder / 'calls').exists() or 'state' not in cloud.calls:
    assert running.poll() is None
  running.send_signal(signal.SIGTERM)
  said = running.communicate(timeout=30)
  assert running.returncode == 143, said
  assert cloud.calls[-2:] == ['delete', 'delete']


def test_what_cannot_be_deleted_is_told(cloud):
  cloud.answers(delete=['1 ERROR: busy'] * 99)
  code, errors = cloud.run(*RUN)
  assert code == 1
  assert errors[-1].startswith('tpu.sh: cannot delete ab, which COSTS MONEY')


def test_a_tpu_of_someone_else_is_not_deleted(cloud):
  cloud.answers(create=['1 ERROR: ALREADY_EXISTS'])
  code, errors = cloud.run(*RUN)
  assert code == 1 and 'there is a ab already' in errors[-1]
  assert cloud.calls == ['create']


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], 'expected an action and a name'),
    (['fly', 'ab'], "there is no action 'fly'"),
    (['delete', 'A_B'], 'small letters'),
    (['delete', 'ab'], 'delete needs --zone'),
    (['delete', 'ab', '--zome=x'], 'no option --zome=x'),
    (RUN[:-4], 'run needs a command'),
    (['setup', 'ab', *WHERE, '--bucket=b'], 'must be gs://BUCKET, found'),
  ],
)
def test_mistakes_are_answered_at_once(arguments, words):
  done = _tpu(*arguments)
  assert done.returncode == 2
  assert words in done.stderr and done.stderr.count('\n') == 1


def test_help_and_a_missing_gcloud(tmp_path):
  assert 'Usage: launch/tpu.sh' in _tpu('--help').stdout
  for name in ('bash', 'dirname', 'env'):
    (tmp_path / name).symlink_to(shutil.which(name))
  done = _tpu('delete', 'ab', *WHERE, env={'PATH': str(tmp_path)})
  assert done.returncode == 2 and 'gcloud is not here' in done.stderr
