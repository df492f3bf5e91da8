#!/usr/bin/env bash
# Starts a verb of crate-graph by `accelerate launch`, on this host or on many: then once on each of them.
#   ./launch/accelerate.sh train RECIPE [key.path=value ...]                          on all GPUs of this host
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node1 ./launch/accelerate.sh train RECIPE ...     on node1, and with NODE_RANK=1
#                                                                                     on the other
#   ./launch/accelerate.sh --print train RECIPE ...                                   show the command, run nothing
#
# Settings, as environment variables:
#   NODES           hosts of the run (1)
#   NODE_RANK       number of this one; the host MASTER_ADDR is 0
#   PROCS_PER_NODE  processes on each (one per GPU, or 1)
#   MASTER_ADDR     the host where all meet        MASTER_PORT  a free port there (29500)
#   NETWORK         infiniband, efa, tcp, gloo: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph (.venv/bin/python)
#
# Exit code: 0 finished or stopped by stop-now, 75 stopped by a signal and to be started again,
# 2 a mistake, 1 a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'accelerate.sh: error: %s\n' "$*" >&2
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

count_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU || :; }

nodes=${NODES:-1} procs=${PROCS_PER_NODE:-$(count_gpus)}
if ((procs == 0)); then procs=1; fi
command=("$python" -m accelerate.commands.accelerate_cli launch --config_file "$root/launch/accelerate.yaml"
  --num_machines "$nodes" --num_processes "$((nodes * procs))" --main_process_port "${MASTER_PORT:-29500}")
if ((nodes > 1)); then
  [[ -n ${MASTER_ADDR:-} && -n ${NODE_RANK:-} ]] ||
    fail "NODES=$nodes: set MASTER_ADDR to the host where all meet, and NODE_RANK to this host's number, there 0"
  command+=(--main_process_ip "$MASTER_ADDR" --machine_rank "$NODE_RANK")
fi
if ((nodes * procs > 1)); then command+=(--multi_gpu); fi
command+=(--module crate_graph "${words[@]}")

if [[ -n $print_only ]]; then
  show "${command[@]}"
  exit
fi

# The shell passes signals on: SIGTERM and SIGUSR1 to the workers, as a request to save and stop.
journal=$(mktemp)
export CRATE_GRAPH_JOURNAL=$journal
again=''
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  if grep -q '^start' "$journal"; then
    # shellcheck disable=SC2046
    kill -USR1 $(cat "/proc/$agent/task/$agent/children") 2>/dev/null || :
  else
    again=1
    kill -INT "$agent" 2>/dev/null || : # nothing is trained yet
  fi
}
set -m # else the agent would ignore Ctrl-C
bash -c 'trap "" TERM USR1; exec "$@"' agent "${command[@]}" &
agent=$!

# An agent that asks a host in vain, because the link to it is cut, waits for ever and does not see its workers end.
worker_ended() {
  local worker workers=()
  read -r -a workers <"/proc/$agent/task/$agent/children"
  for worker in "${workers[@]}"; do
    if grep -q '^State:.*zombie' "/proc/$worker/status"; then return; fi
  done
  return 1
}
watch_agent() {
  local unseen=0
  while sleep 5 && kill -0 "$agent"; do
    if worker_ended; then ((unseen += 5)); else unseen=0; fi
    if ((unseen >= 45)); then
      echo unreachable >>"$journal"
      kill -KILL "$agent"
    fi
  done
}
watch_agent </dev/null >/dev/null 2>&1 &
guard=$!
disown "$guard" # its end is no news

trap pass_on TERM USR1
trap 'kill -INT "$agent" 2>/dev/null || :' INT
while :; do
  if wait "$agent"; then code=0; else code=$?; fi
  kill -0 "$agent" 2>/dev/null || break
done
kill -- "-$guard" 2>/dev/null || :
# torchrun makes 1 of every exit code; what happened stands in the journal.
outcome=$(tail -n 1 "$journal")
rm -f "$journal"
case $outcome in
  preempted) again=1 ;;
  unreachable)
    echo "accelerate.sh: failed: a process has ended, and the host where all meet does not answer; start the same line again" >&2
    code=1
    ;;
  mistake) exit 2 ;;
esac
if [[ -n $again ]]; then exit 75; fi
exit "$code"
