"""What slurm.sbatch does when its step has ended: the commands of Slurm are played, their answers are those of 22.05.

The real ones run in test_slurm.py and tools/slurm_proof.py; here every end of a run is gone through in a moment.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
PLAYED = {
    # what the run says in each of its lives, one word in SAYS for a line; a dot ends a life
    "srun": """#!/bin/bash
trap '' USR1 # the real one passes it on
life=$(grep -c '^life' "$CRATE_GRAPH_JOURNAL")
for line in $(cut -d . -f "$life" <<<"$SAYS"); do
  if [[ $line == usr1 ]]; then kill -USR1 "$PPID"; sleep 0.2; else echo "${line/_/ }" >> "$CRATE_GRAPH_JOURNAL"; fi
done
exit "$CODE"
""",
    "scontrol": """#!/bin/bash
case $1 in
  requeue) echo "$*" >> "$ASKED" ;;
  show) echo node1; [[ $2 == hostnames ]] || echo "NodeName=node1 NodeAddr=10.0.0.7 NodeHostName=node1" ;;
esac
""",
    "squeue": "#!/bin/bash\necho $STATE\n",
    "sleep": "#!/bin/bash\n[[ $1 == 60 ]] || exec /bin/sleep $1\n",
    "python": "#!/bin/bash\n",
}


@pytest.fixture
def job(tmp_path):
    for name, text in PLAYED.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def live(says, code=0, restarts=None, state="RUNNING"):
        """One life of the job; returns its exit code and how often it was to be requeued by now."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
        environment |= {"SAYS": says, "CODE": str(code), "STATE": state, "ASKED": str(tmp_path / "asked")}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
        environment |= {"SLURM_SUBMIT_DIR": str(SCRIPT.parents[1])}
        if restarts is not None:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        command = ["bash", str(SCRIPT), "train", "x"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        assert set(asked) <= {"requeue 7"}, done.stderr
        return done.returncode, len(asked)

    return live


@pytest.mark.parametrize(
    "says, code, expected, requeued",
    [
        ("start_0 finished", 0, 0, 0),
        ("start_0 stopped", 0, 0, 0),
        ("start_0 mistake", 1, 2, 0),
        ("mistake", 1, 2, 0),
        ("start_0 preempted", 0, 75, 1),
        ("start_0 preempted", 1, 75, 1),  # one node saved, another was lost meanwhile
        ("start_0", 1, 75, 1),
        ("start_0 usr1", 0, 75, 1),  # of Slurm's signal before the end
        ("start_0 usr1 finished", 0, 0, 0),
        ("", 0, 0, 0),  # another verb than train
    ],
)
def test_what_is_requeued(job, says, code, expected, requeued):
    assert job(says, code) == (expected, requeued)


def test_a_job_that_slurm_ends_is_not_requeued(job):
    assert job("start_0 preempted", state="COMPLETING") == (75, 0)


def test_failures_without_progress_are_given_up(job):
    says = "start_0 . start_0 . start_0"
    assert job(says, 1) == (75, 1)
    assert job(says, 1, restarts=1) == (75, 2)
    assert job(says, 1, restarts=2) == (1, 2)


def test_failures_before_any_start_are_given_up(job):
    assert [job("", 1, restarts=life or None)[0] for life in range(3)] == [75, 75, 1]


def test_progress_forgives_failures(job):
    says = "start_0 . start_0 . start_100 . start_100 . start_100"
    assert [job(says, 1, restarts=life or None)[0] for life in range(5)] == [75, 75, 75, 75, 1]


def test_a_new_job_of_the_same_number_begins_anew(job):
    assert [job("start_0 . start_0", 1, restarts=None)[0] for _ in range(4)] == [75] * 4
