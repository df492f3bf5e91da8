#!/usr/bin/env bash
# Starts a verb of crate-graph by torchrun, on this host or on many: then the same line is started on each of them.
#   ./launch/torchrun.sh train RECIPE [key.path=value ...]                on all GPUs of this host
#   NODES=2 MASTER_ADDR=node1 ./launch/torchrun.sh train RECIPE ...       on each of two hosts
#   ./launch/torchrun.sh --print train RECIPE ...                         show the command, run nothing
#
# Settings, as environment variables:
#   NODES           hosts of the run (1); 2:4 lets it go on with any number of these
#   PROCS_PER_NODE  processes on each (one per GPU, or 1)
#   MASTER_ADDR     the host where all meet, one of them       MASTER_PORT  a free port there (29500)
#   RUN_ID          tells this run from another that meets at the same place (crate-graph)
#   MAX_RESTARTS    how often torchrun starts all processes anew when one fails (0)
#   JOIN_TIMEOUT    seconds for all hosts to arrive (600)
#   NETWORK         infiniband, efa, tcp, gloo: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph (.venv/bin/python)
#
# Exit code: 0 finished or stopped by stop-now, 75 stopped by a signal and to be started again,
# 2 a mistake, 1 a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'torchrun.sh: error: %s\n' "$*" >&2
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

gpus_or_one() {
  if nvidia-smi --list-gpus >/dev/null 2>&1; then echo gpu; else echo 1; fi
}

nodes=${NODES:-1} procs=${PROCS_PER_NODE:-$(gpus_or_one)}
host=${MASTER_ADDR:-} port=${MASTER_PORT:-29500} run_id=${RUN_ID:-crate-graph}
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NODES=$nodes: write a number of hosts, as 4, or a range, as 2:4"
[[ $procs =~ ^([1-9][0-9]*|gpu|cpu|auto)$ ]] || fail "PROCS_PER_NODE=$procs: write a number of processes, 1 or more"
[[ $nodes == 1 || -n $host ]] || fail "NODES=$nodes: set MASTER_ADDR to the host where all meet, the same on each"
[[ $nodes == 1 || -n $print_only ]] || getent ahosts "$host" >/dev/null ||
  fail "MASTER_ADDR=$host: $(hostname) knows no host of that name; mend it, or write an address"

# Each start of the processes gets a store of its own. In one that they share with those before them they may find the
# address of a dead one, and a host that comes back would be told of a store that is gone.
command=(env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "$python" -m torch.distributed.run
  --nnodes="$nodes" --nproc-per-node="$procs" --max-restarts="${MAX_RESTARTS:-0}")
if [[ $nodes == 1 ]]; then
  command+=(--standalone)
else
  command+=(--rdzv-backend=c10d --rdzv-endpoint="$host:$port" --rdzv-id="$run_id"
    --rdzv-conf="join_timeout=${JOIN_TIMEOUT:-600},read_timeout=45")
fi
# The agent would end its workers 30 seconds after a SIGTERM; they get the signal by another way, and save in peace.
command+=(--signals-to-handle=SIGINT -m crate_graph "${words[@]}")

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
    echo "torchrun.sh: failed: a process has ended, and the host where all meet does not answer; start the same line again" >&2
    code=1
    ;;
  mistake) exit 2 ;;
esac
if [[ -n $again ]]; then exit 75; fi
exit "$code"
