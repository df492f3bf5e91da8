"""launch/slurm.sbatch on a real Slurm of two nodes, started for this test; tools/slurm_proof.py disturbs it more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "slurm_proof.py"
NEEDED = ("slurmctld", "slurmd", "munged")
ABSENT = [name for name in NEEDED if shutil.which(name) is None]


@pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of its own needs root")
@pytest.mark.skipif(bool(ABSENT), reason=f"{ABSENT} not installed: tools/test.sh asks apt-get for slurm-wlm and munge")
@pytest.mark.timeout(900)
def test_a_signalled_job_comes_back_with_the_same_losses():
    """The losses are those of two plain srun tasks without torchrun."""
    command = [sys.executable, str(TOOL), "--only", "signal", "--steps", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    assert "| signal | went on at step" in done.stdout
