#!/usr/bin/env bash
# Examines hosts before a run: `crate-graph doctor` on every node of a Slurm allocation, else on this host.
#   ./launch/preflight.sh RECIPE [--run-dir DIR] [key.path=value ...]
#   salloc --nodes=4 --gpus-per-node=8 ./launch/preflight.sh RECIPE       on four nodes, with the network between them
#   ./launch/preflight.sh --print RECIPE                                  show the command, run nothing
#
# Settings, as environment variables:
#   PROCS_PER_NODE  processes on each node, as the run is to have (its GPUs, or 1)
#   NETWORK         {{ networks | join(', ') }}: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph, on every node (.venv/bin/python)
#
# Exit code: 0 nothing failed, 1 a check failed, {{ exit_mistake }} a mistake.
set -euo pipefail

{% include "parts/slurm_place.sh" %}

{% include "parts/words.sh" %}

{% include "parts/python.sh" %}

{% include "parts/procs.sh" %}

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
export {{ journal_variable }}=$journal
if "${command[@]}"; then code=0; else code=$?; fi
if grep -q '^mistake' "$journal"; then exit {{ exit_mistake }}; fi
exit "$code"
