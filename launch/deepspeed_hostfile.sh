#!/usr/bin/env bash
# Starts a verb of crate-graph on the hosts of a DeepSpeed hostfile, over ssh (pdsh), by the launcher of DeepSpeed.
#   ./launch/deepspeed_hostfile.sh HOSTFILE train RECIPE [key.path=value ...]
#   ./launch/deepspeed_hostfile.sh --print HOSTFILE train RECIPE ...          show the command, run nothing
#
# HOSTFILE has a line `HOST slots=GPUS` for each host. All of them see this folder at the same place, and this host
# reaches them by ssh without a password.
# Settings, as environment variables:
#   MASTER_ADDR  where all meet (what the first host says of itself)   MASTER_PORT  a free port there (29500)
#   SSH_ARGS     more words for ssh, such as: -p 2222, or: -F FILE
#   NETWORK      infiniband, efa, tcp, gloo: sets the variables of launch/env/NETWORK.sh
#   PYTHON       the interpreter that has crate-graph, on every host (.venv/bin/python)
# What the hosts are told of this environment: NCCL_*, GLOO_*, FI_*, OMP_*, DS_*, TORCH_*, CRATE_GRAPH_*, PYTHON*.
#
# Exit code: that of the run; 75 where SIGTERM or SIGUSR1 to this script stopped it, and it is to be started again.
# DeepSpeed gives the run 30 seconds to save after a signal; `touch RUN/stop-now` gives it all the time it needs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'deepspeed_hostfile.sh: error: %s\n' "$*" >&2
  exit 2
}

show() {
  local shown
  printf -v shown ' %q' "$@"
  printf '%s\n' "${shown# }"
}

print_only='' words=()
for word in "$@"; do
  if [[ $word == --print ]]; then print_only=1; else words+=("$word"); fi
done
if [[ ${#words[@]} == 0 ]]; then
  sed -n '2,/^set/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi

hostfile=${words[0]} words=("${words[@]:1}")
[[ -f $hostfile ]] || fail "$hostfile: no such file; it has a line for each host: HOST slots=GPUS"
((${#words[@]})) || fail "after $hostfile a verb is missing: train RECIPE"
mapfile -t hosts < <(sed 's/#.*//' "$hostfile" | awk 'NF { print $1 }')
((${#hosts[@]})) || fail "$hostfile: names no host; it has a line for each: HOST slots=GPUS"

python=${PYTHON:-$root/.venv/bin/python}
if [[ -z $print_only ]]; then
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("crate_graph") is None)' 2>/dev/null ||
    fail "$python has no crate-graph; set PYTHON to one that has, or make .venv by ./launch/local.sh --help"
fi
if [[ -n ${NETWORK:-} ]]; then
  network=$root/launch/env/$NETWORK.sh
  [[ -f $network ]] || fail "NETWORK=$NETWORK: no file $network; one of infiniband, efa, tcp, gloo"
  # shellcheck source=/dev/null
  source "$network"
fi

read -r -a ssh_args <<<"${SSH_ARGS:-}"
address=${MASTER_ADDR:-}
if [[ -z $print_only ]]; then
  type -P pdsh >/dev/null || fail "pdsh is not installed (apt-get install pdsh); the launcher of DeepSpeed needs it"
  # All at once, since each host that is down takes its time; without the warning that a new host is known from now on,
  # which would be taken for its address.
  answers=$(mktemp -d)
  trap 'rm -rf "$answers"' EXIT
  asked=() silent=()
  for number in "${!hosts[@]}"; do
    timeout 15 ssh -n -o LogLevel=ERROR -o BatchMode=yes -o ConnectTimeout=10 "${ssh_args[@]}" "${hosts[number]}" \
      hostname -I >"$answers/$number" 2>&1 &
    asked+=($!)
  done
  for number in "${!hosts[@]}"; do
    if wait "${asked[number]}"; then continue; fi
    said=$(tr -d '\r' <"$answers/$number" | tail -n 1)
    silent+=("host ${hosts[number]} (${said:-no answer in 15 s})")
  done
  if ((${#silent[@]})); then
    fail "$hostfile: cannot be reached by ssh: ${silent[*]}; mend the line, or try: ssh HOST hostname"
  fi
  read -r said _ < <(tail -n 1 "$answers/0")
  address=${address:-$said}
fi

command=("$python" -m deepspeed.launcher.runner --hostfile "$hostfile" --force_multi --no_ssh_check
  --master_addr "${address:-ADDRESS_OF_${hosts[0]}}" --master_port "${MASTER_PORT:-29500}"
  --no_local_rank --module crate_graph "${words[@]}")
if [[ -n $print_only ]]; then
  show "${command[@]}"
  exit
fi

told=$(mktemp)
trap 'rm -rf "$told" "$answers"' EXIT
env | grep -E '^(NCCL|GLOO|FI|OMP|DS|TORCH|CRATE_GRAPH)_[A-Z0-9_]*=' >"$told" || :
export DS_ENV_FILE=$told PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} ${SSH_ARGS:-}"
again=''
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  again=1
  kill -TERM "$launcher" 2>/dev/null || :
}
"${command[@]}" &
launcher=$!
trap pass_on TERM USR1
while :; do
  if wait "$launcher"; then code=0; else code=$?; fi
  kill -0 "$launcher" 2>/dev/null || break
done
if [[ -n $again ]]; then exit 75; fi
exit "$code"
