#!/usr/bin/env bash
# Lint and tests; the first start sets up .venv. Arguments go to pytest:  ./tools/test.sh tests/data -k plan
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source-path=SCRIPTDIR source=system_packages.sh
source "$root/tools/system_packages.sh"

set_up test
install_system_packages
cd "$root"
python=$venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check .
"$venv/bin/shellcheck" -x launch/*.sh launch/*.sbatch launch/env/*.sh tools/*.sh .ci/run
# Two at a time; the tests of one file stay together, since they share the runs that they start. A worker that
# dies ends the session: its replacement may wait for ever.
exec "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
