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
#   MASTER_ADDR     the host where all meet        MASTER_PORT  a free port there ({{ port }})
#   NETWORK         {{ networks | join(', ') }}: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph (.venv/bin/python)
#
# Exit code: 0 finished or stopped by stop-now, {{ exit_again }} stopped by a signal and to be started again,
# {{ exit_mistake }} a mistake, 1 a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

{% include "parts/words.sh" %}

{% include "parts/python.sh" %}

count_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU || :; }

nodes=${NODES:-1} procs=${PROCS_PER_NODE:-$(count_gpus)}
if ((procs == 0)); then procs=1; fi
command=("$python" -m accelerate.commands.accelerate_cli launch --config_file "$root/launch/accelerate.yaml"
  --num_machines "$nodes" --num_processes "$((nodes * procs))" --main_process_port "${MASTER_PORT:-{{ port }}}")
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

{% include "parts/agent.sh" %}
