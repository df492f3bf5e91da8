#!/usr/bin/env bash
# Rewrites tools/constraints.txt: one pinned version of every dependency for each supported Python.
#   ./tools/lock.sh               keep the pins that still fit
#   ./tools/lock.sh --upgrade     take the newest versions
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'uv>=0.8'

touch tools/constraints.txt
cp tools/constraints.txt "$scratch/constraints.txt"
"$scratch/venv/bin/uv" pip compile pyproject.toml --quiet --universal --python-version 3.10 --all-extras \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package crate-graph \
  --output-file "$scratch/constraints.txt" "$@"
mv "$scratch/constraints.txt" tools/constraints.txt
