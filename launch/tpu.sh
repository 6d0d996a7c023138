#!/usr/bin/env bash
# A run on the workers of a TPU VM: `launch/tpu.sh --help`.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: launch/tpu.sh [--dry-run] ACTION NAME OPTION... [-- COMMAND...]

  launch/tpu.sh run enwik8 --zone=us-east5-b --type=v6e-16 --spot \
    --runtime=v2-alpha-tpuv6e --bucket=gs://my-bucket -- \
    txl train --config=experiments/enwik8_large.py --workdir=bucket/enwik8

Actions, on the queued resource NAME and its node of the same name:
  run     all that follows, again after a preemption; deletes at the end,
          whatever the end is
  create  request the TPU, and wait until it is there
  setup   send the last commit of this checkout, install it, mount the bucket
  start   start COMMAND on all workers, one process each
  watch   wait until it has ended everywhere
  logs    fetch the workers' logs into NAME-logs/
  delete  delete the TPU

Options:
  --zone=ZONE, --project=PROJECT (gcloud's own if it is not given)
  --type=TYPE        such as v6e-16; for create and run
  --runtime=VERSION  of the TPU's software, such as v2-alpha-tpuv6e; likewise
  --spot, --reserved capacity; likewise
  --bucket=gs://B    is the folder `bucket` of the workers; for setup and run
  --wait=SECONDS     for capacity, 86400 (a day); for create and run
  --tries=N          to create, to set up, to delete: 5
  --dry-run          print the commands instead
  --help             print this

TXL_POLL_SECONDS (60) lie between two looks at the TPU.
HELP
}

say() { echo "tpu.sh: $1" >&2; }

tell() { [[ -n $dry_run ]] || echo "tpu.sh: $(date +%H:%M) $1" >&3; }

fail() {
  say "$1"
  exit "${2:-1}"
}

# Prints a command, or runs it for 20 minutes at most.
do_() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@" >&3
    echo >&3
  else
    timeout --foreground 1200 "$@" </dev/null # Ctrl-C reaches it, too
  fi
}

cloud() {
  do_ gcloud compute tpus "$@" "--zone=$zone" --quiet \
    ${project:+"--project=$project"}
}

on_all() {
  cloud tpu-vm ssh "$name" --worker=all "--command=$1" "${@:2}"
}

pause() { [[ -n $dry_run ]] || sleep "${TXL_POLL_SECONDS:-60}"; }

# The line of an output that says what is wrong.
reason() { grep -m 1 ERROR <<<"$1" || tail -n 1 <<<"$1"; }

# ACTIVE, the name of another state, or UNKNOWN.
state() {
  local found
  found=$(cloud queued-resources describe "$name" \
    '--format=value(state.state)' 2>/dev/null) || found=UNKNOWN
  [[ -z $dry_run ]] || found=ACTIVE
  echo "${found:-UNKNOWN}"
}

create() {
  local try said
  tell "asking for $name, a $type in $zone"
  for ((try = 1; try <= tries; try++)); do
    if said=$(cloud queued-resources create "$name" "--node-id=$name" \
      "--accelerator-type=$type" "--runtime-version=$runtime" \
      ${capacity:+"$capacity"} 2>&1); then
      owned=yes
      wait_for_capacity && return 0
      said='it could not be provided'
    elif [[ -z $owned ]] && grep -q ALREADY_EXISTS <<<"$said"; then
      fail "there is a $name already; delete it, or choose another name"
    elif grep -qi quota <<<"$said"; then
      fail "no quota for $type in $zone: $(reason "$said")"
    elif grep -qE 'PERMISSION_DENIED|INVALID_ARGUMENT' <<<"$said"; then
      fail "gcloud refuses to create $name: $(reason "$said")"
    fi
    owned=yes # in part, it may be there
    say "try $try of $tries to create $name: $(reason "$said")"
    delete || exit 1
    pause
  done
  fail "cannot create $name in $tries tries: $(reason "$said")"
}

wait_for_capacity() {
  local end=$((SECONDS + wait))
  while :; do
    case $(state) in
      ACTIVE) tell "$name is there" && return 0 ;;
      FAILED | SUSPENDING | SUSPENDED) return 1 ;;
    esac
    ((SECONDS < end)) ||
      fail "no $type was free in $zone within $wait s (see --wait)"
    pause
  done
}

setup() {
  local try said archive=${TMPDIR:-/tmp}/txl_jax-$name.tar.gz remote
  remote="mkdir -p txl_jax && tar xzf txl_jax.tar.gz -C txl_jax && \
bash txl_jax/launch/tpu_worker.sh setup $bucket"
  tell "setting up the workers, which takes minutes"
  do_ git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  for ((try = 1; try <= tries; try++)); do
    said=$(cloud tpu-vm scp "$archive" "$name:txl_jax.tar.gz" --worker=all \
      2>&1 && on_all "$remote" 2>&1) && return 0
    ! grep -q FAULT: <<<"$said" ||
      fail "$(sed -n 's/.*FAULT: //p' <<<"$said" | head -n 1)"
    say "try $try of $tries to set up: $(reason "$said")"
    [[ $(state) == ACTIVE ]] || { say "$name was preempted" && return 1; }
    pause
  done
  fail "a worker of $name does not start in $tries tries: $(reason "$said")"
}

start() {
  local try said remote='bash txl_jax/launch/tpu_worker.sh start'
  remote+=$(printf ' %q' "${command[@]}")
  for ((try = 1; try <= tries; try++)); do
    if said=$(on_all "$remote" 2>&1); then
      tell "started; see it with: launch/tpu.sh logs $name --zone=$zone"
      return 0
    fi
    [[ $(state) == ACTIVE ]] || { say "$name was preempted" && return 1; }
    pause
  done
  fail "cannot start on all workers of $name: $(reason "$said")"
}

# 0 when all have ended, 77 when all stopped and saved, 1 after a preemption.
watch() {
  local said found missed=0
  while :; do
    pause
    found=$(state)
    [[ $found =~ ^(ACTIVE|UNKNOWN)$ ]] ||
      { say "$name was preempted ($found)" && return 1; }
    said=$(on_all 'bash txl_jax/launch/tpu_worker.sh state' 2>&1) || said=
    [[ -z $dry_run ]] || said='state: 0'
    found=$(sed -n 's/^state: \([a-z0-9]*\).*/\1/p' <<<"$said")
    if [[ -z $found ]]; then
      ((++missed < tries)) || fail "cannot reach all workers of $name any more"
      continue
    fi
    missed=0
    if grep -qvxE '0|77|running|lost' <<<"$found"; then
      fail "a worker ended with $(grep -vE '^state: (0|77|running|lost)' \
        <<<"$said" | sed -n 's/^state: /code /p' | head -n 1)"
    elif ! grep -qx running <<<"$found"; then
      ! grep -qvx 0 <<<"$found" || return 77
      tell 'ended on all workers' && return 0
    fi
  done
}

logs() {
  do_ mkdir -p "$name-logs"
  on_all 'tail -c 10000000 txl.log' "--output-directory=$name-logs"
}

delete() {
  local try said
  for ((try = 1; try <= tries; try++)); do
    if said=$(cloud queued-resources delete "$name" --force 2>&1) ||
      grep -q NOT_FOUND <<<"$said"; then
      tell "deleted $name"
      return 0 # in a trap, a bare `return` gives the code from before it
    fi
    pause
  done
  say "cannot delete $name, which COSTS MONEY: $(reason "$said")"
  return 1
}

run() {
  local code
  while create; do
    code=1
    if setup && start; then
      while code=0 && { watch || code=$?; } && ((code == 77)); do
        say 'stopped and saved; starting again'
        start || break
      done
    fi
    ((code != 0)) || return 0
    say "creating $name again, to go on from the last checkpoint"
    delete || exit 1
  done
}

# Whatever the end of `run`, and when `create` fails.
finish() {
  local code=$?
  trap '' INT TERM # nothing keeps it from deleting
  [[ $action == run || $code -ne 0 ]] || exit 0
  if [[ -n $owned ]]; then
    [[ $(state) != ACTIVE ]] || logs >/dev/null 2>&1 ||
      say 'cannot fetch the logs'
    delete || code=1
  fi
  exit "$code"
}

needs() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "$action needs --$option; see --help" 2
  done
}

root=$(cd "$(dirname "$0")/.." && pwd)
dry_run='' zone='' project='' type='' runtime='' capacity='' bucket='' owned=''
wait=86400 tries=5 words=() command=()
exec 3>&1
while (($#)); do
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --spot | --reserved) capacity=$1 ;;
    --zone=* | --project=* | --type=* | --runtime=* | --bucket=* | --wait=* | \
      --tries=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --) shift && command=("$@") && break ;;
    -*) fail "there is no option $1; see --help" 2 ;;
    *) words+=("$1") ;;
  esac
  shift
done
[[ ${#words[@]} -eq 2 ]] || fail 'expected an action and a name; see --help' 2
action=${words[0]} name=${words[1]}
[[ $name =~ ^[a-z][-a-z0-9]{0,60}$ ]] ||
  fail "a name is small letters, digits and hyphens, found '$name'" 2
[[ -z $bucket || $bucket =~ ^gs://[-_.a-z0-9]+$ ]] ||
  fail "--bucket must be gs://BUCKET, found '$bucket'" 2
case $action in
  create) needs zone type runtime ;;
  setup) needs zone bucket ;;
  run) needs zone type runtime bucket ;;
  start | watch | logs | delete) needs zone ;;
  *) fail "there is no action '$action'; see --help" 2 ;;
esac
[[ ! $action =~ ^(start|run)$ || ${#command[@]} -gt 0 ]] ||
  fail "$action needs a command behind --; see --help" 2
[[ -n $dry_run ]] || command -v gcloud >/dev/null ||
  fail 'gcloud is not here: https://cloud.google.com/sdk/docs/install' 2
trap 'exit 130' INT
trap 'exit 143' TERM
[[ ! $action =~ ^(create|run)$ ]] || trap finish EXIT
"$action"
