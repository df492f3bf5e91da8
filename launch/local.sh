#!/usr/bin/env bash
# Runs crate-graph on this computer; the first start sets up .venv.
#   ./launch/local.sh quickstart                      train a small CRATE on Fashion-MNIST
#   ./launch/local.sh quickstart schedule.epochs=2    with settings of the recipe changed
#   ./launch/local.sh restoration-quickstart          train a small graph network to demosaick, and compare pictures
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

crate_graph=("$venv/bin/python" -m crate_graph)

# Train, then restore the held-back pictures: their PSNR beside that of bilinear interpolation, and comparisons.
restoration_quickstart() {
  local run=runs/restoration_quickstart
  local pictures=$run/pictures
  step "${crate_graph[@]}" train restoration_quickstart --run-dir "$run" "$@"
  if [[ -z ${print_only:-} ]] && grep -qs '"finished": false' "$run/summary.json"; then
    printf '\nStopped before its end; the same command goes on.\n'
    return
  fi
  [[ -d $pictures ]] ||
    step "${crate_graph[@]}" shards extract photo_crops --split test --output "$pictures"
  step "${crate_graph[@]}" restore "$run" "$pictures"/*.png --degrade bayer:RGGB --compare --force \
    --output "$run/restored"
  printf '\nComparisons: %s/restored/*.compare.png\n' "$run"
}

set_up ""
if [[ ${words[0]} == restoration-quickstart ]]; then
  restoration_quickstart "${words[@]:1}"
elif [[ -n ${print_only:-} ]]; then
  step "${crate_graph[@]}" "${words[@]}"
else
  exec "${crate_graph[@]}" "${words[@]}"
fi
