python=${PYTHON:-$root/.venv/bin/python}
if [[ -z $print_only ]]; then
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("crate_graph") is None)' 2>/dev/null ||
    fail "$python has no crate-graph; set PYTHON to one that has, or make .venv by ./launch/local.sh --help"
fi
if [[ -n ${NETWORK:-} ]]; then
  network=$root/launch/env/$NETWORK.sh
  [[ -f $network ]] || fail "NETWORK=$NETWORK: no file $network; one of {{ networks | join(', ') }}"
  # shellcheck source=/dev/null
  source "$network"
fi
