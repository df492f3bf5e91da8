# Slurm runs a copy of this file, so the checkout is where the job was submitted.
if [[ -n ${CRATE_GRAPH_ROOT:-${SLURM_SUBMIT_DIR:-}} ]]; then
  root=${CRATE_GRAPH_ROOT:-$SLURM_SUBMIT_DIR}
else
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fi
