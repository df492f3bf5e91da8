#!/usr/bin/env bash
# Examines hosts before a run: `crate-graph doctor` on every node of a Slurm allocation, else on this host.
#   ./launch/preflight.sh RECIPE [--run-dir DIR] [key.path=value ...]
#   salloc --nodes=4 --gpus-per-node=8 ./launch/preflight.sh RECIPE       on four nodes, with the network between them
#   ./launch/preflight.sh --print RECIPE                                  show the command, run nothing
#
# Settings, as environment variables:
#   PROCS_PER_NODE  processes on each node, as the run is to have (its GPUs, or 1)
#   NETWORK         infiniband, efa, tcp, gloo: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph, on every node (.venv/bin/python)
#
# Exit code: 0 nothing failed, 1 a check failed, 2 a mistake.
set -euo pipefail

# Slurm runs a copy of this file, so the checkout is where the job was submitted.
if [[ -n ${CRATE_GRAPH_ROOT:-${SLURM_SUBMIT_DIR:-}} ]]; then
  root=${CRATE_GRAPH_ROOT:-$SLURM_SUBMIT_DIR}
else
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fi

fail() {
  printf 'preflight.sh: error: %s\n' "$*" >&2
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

doctor=(-m crate_graph doctor "${words[@]}")
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  nodes=${SLURM_NNODES:-1} procs=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
  command=(srun --nodes="$nodes" --ntasks="$((nodes * procs))" --ntasks-per-node="$procs" --overlap
    "$python" "${doctor[@]}")
elif procs=${PROCS_PER_NODE:-$(gpus_or_one)} && [[ $procs != 1 ]]; then
  command=("$python" -m torch.distributed.run --standalone --nproc-per-node="$procs" "${doctor[@]}")
else
  command=("$python" "${doctor[@]}")
fi

if [[ -n $print_only ]]; then
  show "${command[@]}"
  exit
fi

# torchrun makes 1 of every exit code; a mistake stands in the journal.
journal=$(mktemp)
trap 'rm -f "$journal"' EXIT
export CRATE_GRAPH_JOURNAL=$journal
if "${command[@]}"; then code=0; else code=$?; fi
if grep -q '^mistake' "$journal"; then exit 2; fi
exit "$code"
