#!/usr/bin/env bash
# Starts a verb of crate-graph by torchrun, on this host or on many: then the same line is started on each of them.
#   ./launch/torchrun.sh train RECIPE [key.path=value ...]                on all GPUs of this host
#   NODES=2 MASTER_ADDR=node1 ./launch/torchrun.sh train RECIPE ...       on each of two hosts
#   ./launch/torchrun.sh --print train RECIPE ...                         show the command, run nothing
#
# Settings, as environment variables:
#   NODES           hosts of the run (1); 2:4 lets it go on with any number of these
#   PROCS_PER_NODE  processes on each (one per GPU, or 1)
#   MASTER_ADDR     the host where all meet, one of them       MASTER_PORT  a free port there ({{ port }})
#   RUN_ID          tells this run from another that meets at the same place (crate-graph)
#   MAX_RESTARTS    how often torchrun starts all processes anew when one fails (0)
#   JOIN_TIMEOUT    seconds for all hosts to arrive ({{ join_timeout }})
#   NETWORK         {{ networks | join(', ') }}: sets the variables of launch/env/NETWORK.sh
#   PYTHON          the interpreter that has crate-graph (.venv/bin/python)
#
# Exit code: 0 finished or stopped by stop-now, {{ exit_again }} stopped by a signal and to be started again,
# {{ exit_mistake }} a mistake, 1 a failure.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

{% include "parts/words.sh" %}

{% include "parts/python.sh" %}

{% include "parts/procs.sh" %}

nodes=${NODES:-1} procs=${PROCS_PER_NODE:-$(gpus_or_one)}
host=${MASTER_ADDR:-} port=${MASTER_PORT:-{{ port }}} run_id=${RUN_ID:-crate-graph}
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NODES=$nodes: write a number of hosts, as 4, or a range, as 2:4"
[[ $procs =~ ^([1-9][0-9]*|gpu|cpu|auto)$ ]] || fail "PROCS_PER_NODE=$procs: write a number of processes, 1 or more"
[[ $nodes == 1 || -n $host ]] || fail "NODES=$nodes: set MASTER_ADDR to the host where all meet, the same on each"
[[ $nodes == 1 || -n $print_only ]] || getent ahosts "$host" >/dev/null ||
  fail "MASTER_ADDR=$host: $(hostname) knows no host of that name; mend it, or write an address"

{% include "parts/torchrun_words.sh" %}

if [[ -n $print_only ]]; then
  show "${command[@]}"
  exit
fi

{% include "parts/agent.sh" %}
