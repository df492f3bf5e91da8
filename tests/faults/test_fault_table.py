"""Some rows of tools/fault_table.py: processes killed in training, inside a save and in the start, and loader workers.

What goes on equals, in every bit, what was never disturbed. The tool alone does the same with more faults.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fault_table.py"


@pytest.mark.timeout(600)
def test_killed_runs_go_on_as_if_nothing_had_been():
    command = [sys.executable, str(TOOL), "--only", "kills", "loader_workers", "--kills", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    killed, workers = done.stdout.splitlines()[2:]
    told = re.search(r"\| ([6-9]|1\d) in \d+ runs?: (\d+) inside a save, .* \| no half-made .*, equal \|", killed)
    assert int(told[2]) >= 1
    assert workers.endswith("| exit code 1 with that cause; the run goes on, equal |")
