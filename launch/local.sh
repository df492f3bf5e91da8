#!/usr/bin/env bash
# Runs crate-graph on this computer; the first start sets up .venv.
#   ./launch/local.sh quickstart                      train a small CRATE on Fashion-MNIST
#   ./launch/local.sh quickstart schedule.epochs=2    with settings of the recipe changed
#   ./launch/local.sh train RECIPE ...                any verb of crate-graph
#   ./launch/local.sh --print quickstart              show the commands, run nothing
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"

words=()
for word in "$@"; do
  if [[ $word == --print ]]; then print_only=1; else words+=("$word"); fi
done
if [[ ${#words[@]} == 0 ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
[[ ${words[0]} == quickstart ]] && words=(train "${words[@]}")

set_up ""
command=("$venv/bin/python" -m crate_graph "${words[@]}")
if [[ -n ${print_only:-} ]]; then
  step "${command[@]}"
else
  exec "${command[@]}"
fi
