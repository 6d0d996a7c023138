#!/usr/bin/env bash
# Several processes of one run on this machine: `launch/local.sh --help`.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: launch/local.sh [--dry-run] N COMMAND [ARGUMENT...]

Starts N processes of a command on this machine, which find each other:

  launch/local.sh 2 txl train --config=experiments/quickstart.py \
    --workdir=runs/two

GPUs are divided among the processes; without any, each computes on the CPU.
Process 0 writes to the terminal as it is, the others behind their number.

Ctrl-C or SIGTERM: all save at the same step, and the exit code is 77. When one
process fails, the others are ended, and the exit code is its own. Both times
the same command goes on from the last checkpoint.

  --dry-run  print the processes' commands instead
  --help     print this
HELP
}

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

# The GPUs of process $1 of $2, or nothing on a machine without.
gpus_of() {
  local all=() each
  if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    return
  elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra all <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    mapfile -t all < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  [[ ${#all[@]} -gt 0 ]] || return 0
  ((${#all[@]} % $2 == 0)) ||
    fail "${#all[@]} GPUs cannot be divided among $2 processes evenly"
  each=$((${#all[@]} / $2))
  (IFS=, && echo "${all[*]:$(($1 * each)):each}")
}

# Below the ports that the system gives out by itself.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (: <"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

start() {
  local process=$1
  shift
  if ((process == 0)); then
    env "$@" &
  else
    env "$@" > >(sed -u "s/^/[$process] /") 2>&1 &
  fi
  pids+=($!)
}

# The processes may end by themselves within $1 seconds, then they are killed.
end_all() {
  local pid patience=$((SECONDS + $1))
  for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < patience)); do
      sleep 0.2
    done
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
}

# Sets `code` to that of the first process that failed, 0 if none did.
watch() {
  local process pid waiting=("${!pids[@]}") left
  code=0
  while [[ ${#waiting[@]} -gt 0 && $code -eq 0 ]]; do
    left=()
    for process in "${waiting[@]}"; do
      pid=${pids[process]}
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$process")
      else
        wait "$pid" 2>/dev/null || { code=$? failed=$process && break; }
      fi
    done
    waiting=("${left[@]}")
    sleep 0.2 &
    wait $! || true # a trap is run at once, unlike during a plain sleep
  done
}

dry_run=
[[ ${1:-} != --dry-run ]] || { dry_run=yes && shift; }
[[ ${1:-} != --help ]] || { usage && exit; }
(($# >= 2)) || fail 'expected N and a command; see --help'
count=$1
shift
[[ $count =~ ^[1-9][0-9]*$ ]] ||
  fail "N must be a whole number of at least 1, found '$count'"
[[ -n $dry_run ]] || command -v "$1" >/dev/null ||
  fail "there is no command '$1'; activate its environment, or give its path"

address=localhost:$(free_port)
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  gpus=$(gpus_of "$i" "$count")
  variables=(
    "JAX_COORDINATOR_ADDRESS=$address"
    "JAX_NUM_PROCESSES=$count"
    "JAX_PROCESS_ID=$i"
    ${gpus:+"CUDA_VISIBLE_DEVICES=$gpus"}
  )
  if [[ -n $dry_run ]]; then
    printf '%q ' env "${variables[@]}" "$@"
    echo
  else
    start "$i" "${variables[@]}" "$@"
  fi
done
[[ -z $dry_run ]] || exit 0
watch 2>/dev/null # without bash's own notices
((code != 0)) || exit 0
if ((code == 77)); then
  end_all 60 # they save at the same step, and leave one after the other
  echo 'local.sh: stopped and saved; the same command goes on' >&2
  exit 77
fi
kill -TERM "${pids[@]}" 2>/dev/null || true
end_all 5
reason="with code $code"
((code <= 128)) || reason="by signal $(kill -l "$code")"
more=
((code == 2)) || more='; the same command goes on from the last checkpoint'
echo "local.sh: process $failed ended $reason, so all are ended$more" >&2
exit "$code"
