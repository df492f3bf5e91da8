"""No fault: the run with which others are compared is the one that users get."""

from __future__ import annotations

import os
import subprocess

from fault_lab import DEADLINE, Trial, expect
from proof_runs import launcher


def torchrun(trial: Trial) -> tuple[str, str]:
    """Nothing, to a run that torchrun starts as users do"""
    lab, run = trial.lab, "torchrun"
    command = [launcher("torchrun.sh"), *lab.words(run)]
    environment = {**os.environ, "PROCS_PER_NODE": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    expect(done.returncode == 0, f"ended with {done.returncode}", done.stderr)
    lab.compare(run)
    return "1", "equal to the run with which all below are compared"
