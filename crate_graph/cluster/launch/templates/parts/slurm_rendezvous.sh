# The first node by its name, or where that does not resolve by the address that Slurm knows.
rendezvous_host() {
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # reads to the end
  if getent hosts "$first" >/dev/null; then
    echo "$first"
  else
    scontrol show node "$first" --oneliner | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2
  fi
}

nodes=${SLURM_NNODES:-{{ default_nodes }}} procs=${PROCS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
host=${MASTER_ADDR:-FIRST_NODE} port=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
run_id=${SLURM_JOB_ID:-JOB}-${SLURM_RESTART_COUNT:-0}
if [[ $host == FIRST_NODE && -n ${SLURM_JOB_NODELIST:-} ]]; then host=$(rendezvous_host); fi
