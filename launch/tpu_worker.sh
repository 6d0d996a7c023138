#!/usr/bin/env bash
# What launch/tpu.sh asks of a worker, in the worker's home.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: tpu_worker.sh [--dry-run] setup gs://BUCKET | start COMMAND... | state

  setup  install the checkout in ~/txl_jax, and mount the bucket in its `bucket`
  start  start a command in ~/txl_jax; its output goes to ~/txl.log
  state  print `state: running`, or the exit code and the last line of output
  --dry-run  print the commands instead
HELP
}

# launch/tpu.sh looks for this word: to try again would not help.
fault() {
  echo "FAULT: $1"
  exit 3
}

# Runs or prints.
do_() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local source=https://packages.cloud.google.com/apt
  do_ sudo curl --fail --silent --show-error --location \
    "$source/doc/apt-key.gpg" --output "$key"
  do_ sudo bash -c "echo 'deb [signed-by=$key] $source \
gcsfuse-$(lsb_release -cs) main' >/etc/apt/sources.list.d/gcsfuse.list"
  do_ sudo apt-get update --quiet
  do_ sudo apt-get install --quiet --yes gcsfuse
}

# Other workers' files are seen at once: nothing is remembered of them. A
# checkpoint is complete when its folder gets its name.
mount_bucket() {
  do_ mkdir -p "$code/bucket"
  mountpoint -q "$code/bucket" ||
    do_ gcsfuse --implicit-dirs --rename-dir-limit=100000 \
      --metadata-cache-ttl-secs=0 "${1#gs://}" "$code/bucket" ||
    fault "cannot mount $1: does it exist, and may this TPU read it?"
  do_ touch "$code/bucket/.writable-$(hostname)" ||
    fault "cannot write to $1: give the TPU's service account the role \
roles/storage.objectUser"
}

setup() {
  command -v gcsfuse >/dev/null || install_gcsfuse
  mount_bucket "$1"
  # The machine's own Python may be older than 3.11.
  [[ -x $HOME/.local/bin/uv ]] || do_ bash -c \
    'curl --fail --silent --location https://astral.sh/uv/install.sh | sh'
  [[ -d $HOME/venv ]] ||
    do_ "$HOME/.local/bin/uv" venv --python=3.12 "$HOME/venv"
  do_ "$HOME/.local/bin/uv" pip install --quiet \
    "--python=$HOME/venv/bin/python" "${code}[tpu]"
}

running() {
  [[ ! -f ~/txl.code && -f ~/txl.pid ]] &&
    kill -0 "$(cat ~/txl.pid)" 2>/dev/null
}

start() {
  ! running || return 0
  rm -f ~/txl.code
  cd "$code"
  export PATH=$HOME/venv/bin:$PATH
  # It outlives the connection, and leaves its exit code.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'code=0; "$@" || code=$?; echo "$code" >~/txl.code' \
    run "$@" >>~/txl.log 2>&1 </dev/null &
  echo $! >~/txl.pid
}

state() {
  if [[ -f ~/txl.code ]]; then
    echo "state: $(cat ~/txl.code) $(tail -n 1 ~/txl.log)"
  elif running; then
    echo 'state: running'
  else
    echo 'state: lost' # the machine was restarted
  fi
}

dry_run=
[[ ${1:-} != --dry-run ]] || { dry_run=yes && shift; }
code=$HOME/txl_jax
case ${1:-}-$# in
  setup-2) setup "$2" ;;
  start-[2-9]* | start-1[0-9]*) shift && start "$@" ;;
  state-1) state ;;
  --help-1) usage ;;
  *) usage >&2 && exit 2 ;;
esac
