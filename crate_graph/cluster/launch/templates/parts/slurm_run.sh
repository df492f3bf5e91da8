# One task per node runs torchrun. A signal to the step reaches every process: its workers save, its agents ignore it.
step=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none
  bash -c 'trap "" TERM USR1; exec "$@"' agent "${command[@]}")
