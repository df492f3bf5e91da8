# Each start of the processes gets a store of its own. In one that they share with those before them they may find the
# address of a dead one, and a host that comes back would be told of a store that is gone.
command=(env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "$python" -m torch.distributed.run
  --nnodes="$nodes" --nproc-per-node="$procs" --max-restarts="${MAX_RESTARTS:-0}")
if [[ $nodes == 1 ]]; then
  command+=(--standalone)
else
  command+=(--rdzv-backend=c10d --rdzv-endpoint="$host:$port" --rdzv-id="$run_id"
    --rdzv-conf="join_timeout=${JOIN_TIMEOUT:-{{ join_timeout }}},read_timeout={{ read_timeout }}")
fi
# The agent would end its workers 30 seconds after a SIGTERM; they get the signal by another way, and save in peace.
command+=(--signals-to-handle=SIGINT -m crate_graph "${words[@]}")
