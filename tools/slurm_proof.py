"""Disturbs real Slurm jobs of launch/*.sbatch, on a Slurm that it starts, and compares their losses bit for bit.

    .venv/bin/python tools/slurm_proof.py               # every disturbance: some minutes, root, slurm-wlm and munge
    .venv/bin/python tools/slurm_proof.py --only signal # some of them

Two nodes train a small CRATE on the shipped images. After each disturbance the job must end as it should, and
metrics.jsonl must hold the losses of a run that nobody disturbed. Exit code 1 where it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from signal import signal as set_handler

from proof_runs import RECIPE, ROOT, is_worker, losses, print_table
from small_slurm import SmallSlurm, command, missing, processes

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
DEADLINE = 600  # seconds for each thing that is waited for


class Proof:
    """One Slurm, and below `folder` runs of so many `steps`, with a checkpoint each quarter of them."""

    def __init__(self, slurm: SmallSlurm, folder: Path, steps: int):
        self.slurm, self.folder, self.steps, self.quarter = slurm, folder, steps, steps // 4
        self.recipe = folder / "proof.yaml"
        self.recipe.write_text(RECIPE)
        self.expected: dict[int, float] = {}

    def submit(self, run: str, *words: str, options: Sequence[str] = ()) -> str:
        words = [*options, str(ROOT / "launch" / "slurm.sbatch"), *self.train(run), *words]
        return self.slurm.submit(*words, cwd=self.folder, **self.environment())

    def train(self, run: str) -> list[str]:
        length = [f"schedule.max_steps={self.steps}", f"checkpoint.every_steps={self.quarter}"]
        return ["train", str(self.recipe), "--run-dir", str(self.folder / run), *length]

    def environment(self) -> dict[str, str]:
        """One thread per process; loopback, since both nodes are this host."""
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {
            "PYTHON": sys.executable,
            "PYTHONPATH": python_path,
            "CRATE_GRAPH_ROOT": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def losses(self, run: str) -> dict[int, float]:
        return losses(self.folder / run)

    def until_step(self, run: str, step: int) -> None:
        self.slurm.until(f"{run} trains step {step}", lambda: step in self.losses(run), DEADLINE)

    def until_requeued(self, job: str) -> None:
        self.slurm.until(f"job {job} is requeued", lambda: self.slurm.job(job)["Restarts"] != "0", DEADLINE)

    def until_life(self, job: str, number: int) -> None:
        """Until the run of a job's life of this number has started."""
        journal = self.folder / f"slurm-{job}.journal"

        def started() -> bool:
            self.slurm.start_soon(job)
            lives = journal.read_text().split("life ") if journal.exists() else []
            return len(lives) == number + 2 and "start" in lives[-1]

        self.slurm.until(f"life {number} of job {job} trains", started, DEADLINE)

    def ended(self, job: str) -> dict[str, str]:
        """Fields of a job once it has ended."""

        def over() -> bool:
            self.slurm.start_soon(job)
            return self.slurm.job(job)["JobState"] in ENDED

        self.slurm.until(f"job {job} ends", over, DEADLINE)
        return self.slurm.job(job)

    def completed(self, job: str, run: str, *restarts: int) -> str:
        """How often the job came back, which is one of `restarts`."""
        fields = self.ended(job)
        self.expect(fields, JobState="COMPLETED")
        if int(fields["Restarts"]) not in restarts:
            raise AssertionError(f"job {job}: {fields['Restarts']} restarts instead of {restarts}")
        if not json.loads((self.folder / run / "summary.json").read_text())["finished"]:
            raise AssertionError(f"{run} has not finished")
        if self.losses(run) != self.expected:
            different = [step for step, loss in self.expected.items() if self.losses(run).get(step) != loss]
            raise AssertionError(f"{run}: losses differ at steps {different[:5]} and {len(different)} in all")
        return fields["Restarts"]

    def expect(self, fields: dict[str, str], **values: str) -> None:
        for key, value in values.items():
            if fields[key] != value:
                raise AssertionError(f"job {fields['JobId']}: {key}={fields[key]} instead of {value}")


def plain_srun(proof: Proof) -> str:
    """Two srun tasks without torchrun; nobody disturbs them, so theirs are the losses that all others must have."""
    step = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "crate_graph", *proof.train("plain")]
    proof.slurm.call(*step, timeout=DEADLINE, cwd=proof.folder, **proof.environment())
    proof.expected = proof.losses("plain")
    assert len(proof.expected) == proof.steps
    return "finished without torchrun"


def undisturbed(proof: Proof) -> str:
    job = proof.submit("undisturbed")
    proof.completed(job, "undisturbed", 0)
    return "finished"


def signal(proof: Proof) -> str:
    """`scancel --signal=USR1` reaches every process of the step: all save at one step, and the job is requeued."""
    job = proof.submit("signal")
    proof.until_step("signal", proof.quarter // 2)
    proof.slurm.call("scancel", "--signal=USR1", job)
    proof.until_requeued(job)
    proof.completed(job, "signal", 1)
    return f"went on at step {resumed_at(proof, job)}"


def before_the_end(proof: Proof) -> str:
    """The signal that Slurm sends to the batch shell some time before the end of the job."""
    job = proof.submit("before", options=["--signal=B:USR1@300"])
    proof.until_step("before", proof.quarter // 2)
    proof.slurm.call("scancel", "--batch", "--signal=USR1", job)
    proof.until_requeued(job)
    proof.completed(job, "before", 1)
    return f"went on at step {resumed_at(proof, job)}"


def preemption(proof: Proof) -> str:
    """A job of a higher partition takes the nodes; the run saves in its grace time and comes back."""
    job = proof.submit("preemption")
    proof.until_step("preemption", proof.quarter // 2)
    other = proof.slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3", cwd=proof.folder)
    proof.until_requeued(job)
    proof.ended(other)
    proof.completed(job, "preemption", 1)
    return f"went on at step {resumed_at(proof, job)}"


def node_failure(proof: Proof) -> str:
    """A node and all that it runs are gone at once; the job goes on from its checkpoint when the node is back."""
    job = proof.submit("node_failure")
    proof.until_step("node_failure", proof.quarter * 3 // 2)
    proof.slurm.kill_node("n2")
    started = time.monotonic()
    proof.slurm.until("the job leaves the node", lambda: proof.slurm.job(job)["JobState"] != "RUNNING", DEADLINE)
    noticed = time.monotonic() - started
    proof.slurm.start_node("n2")
    proof.until_requeued(job)
    # Slurm may give the returning node to the job and then notice that it was away, which ends that life too
    restarts = proof.completed(job, "node_failure", 1, 2)
    return f"left after {noticed:.0f} s, came back {restarts} times, went on at step {resumed_at(proof, job)}"


def mistake(proof: Proof) -> str:
    """A user's mistake is not requeued for ever."""
    job = proof.submit("mistake", "batch.global_batch=15")
    proof.expect(proof.ended(job), JobState="FAILED", ExitCode="2:0", Restarts="0")
    assert not (proof.folder / "mistake").exists()
    return "refused once, exit code 2"


def stop_now(proof: Proof) -> str:
    """An operator who stops a run does not want it back."""
    job = proof.submit("stop_now")
    proof.until_step("stop_now", proof.quarter // 2)
    (proof.folder / "stop_now" / "stop-now").touch()
    proof.expect(proof.ended(job), JobState="COMPLETED", Restarts="0")
    assert not json.loads((proof.folder / "stop_now" / "summary.json").read_text())["finished"]
    return "saved, not requeued"


def cancelled(proof: Proof) -> str:
    """Nor one that he cancels; it saves first."""
    job = proof.submit("cancelled")
    proof.until_step("cancelled", proof.quarter // 2)
    proof.slurm.call("scancel", job)
    proof.expect(proof.ended(job), JobState="CANCELLED", Restarts="0")
    summary = json.loads((proof.folder / "cancelled" / "summary.json").read_text())
    return f"saved at step {summary['step']}, not requeued"


def failure(proof: Proof) -> str:
    """One that fails again and again at the same step is given up."""
    job = proof.submit("failure", options=["--export=ALL,MAX_FAILURES=2"])
    for life in range(2):
        proof.until_life(job, life)
        os.kill(next(pid for pid in processes() if is_worker(command(pid), proof.folder / "failure")), SIGKILL)
        proof.slurm.until("the job ends", lambda: proof.slurm.job(job)["JobState"] != "RUNNING", DEADLINE)
    proof.expect(proof.ended(job), JobState="FAILED", Restarts="1")
    return "given up after 2 failures"


def sweep(proof: Proof) -> str:
    """A task for each line of a file."""
    file = proof.folder / "seeds.txt"
    file.write_text("# seeds\nseed=0 schedule.max_steps=30\n\nseed=1 schedule.max_steps=30\n")
    words = ["train", str(proof.recipe)]
    environment = {**proof.environment(), "RUNS": str(proof.folder)}
    script = str(ROOT / "launch" / "slurm_array.sbatch")
    job = proof.slurm.submit("--array=0-1", script, str(file), *words, cwd=proof.folder, **environment)
    for task in ("0", "1"):
        proof.expect(proof.ended(f"{job}_{task}"), JobState="COMPLETED")
    first, second = proof.losses("seeds/0"), proof.losses("seeds/1")
    assert len(first) == len(second) == 30 and first != second
    return "2 tasks, 2 run folders"


def resumed_at(proof: Proof, job: str) -> str:
    journal = (proof.folder / f"slurm-{job}.journal").read_text().split()
    return journal[len(journal) - 1 - journal[::-1].index("start") + 1]


SCENARIOS: dict[str, Callable[[Proof], str]] = {
    scenario.__name__: scenario
    for scenario in (
        plain_srun,
        undisturbed,
        signal,
        before_the_end,
        preemption,
        node_failure,
        mistake,
        stop_now,
        cancelled,
        failure,
        sweep,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps of each run (400)")
    args = parser.parse_args(argv)
    if reason := missing():
        print(f"slurm_proof: error: {reason}", file=sys.stderr)
        return 2
    for number in (SIGINT, SIGTERM):
        set_handler(number, lambda *_: sys.exit(1))  # leaves the blocks, so that no daemon is left behind
    names = dict.fromkeys(["plain_srun", *(args.only or SCENARIOS)])
    return prove(list(names), args.steps)


def prove(names: list[str], steps: int) -> int:
    with tempfile.TemporaryDirectory(prefix="slurm-proof-") as temporary:
        folder = Path(temporary)
        with SmallSlurm(folder / "slurm") as slurm:
            proof = Proof(slurm, folder, steps)
            scenarios = {name: partial(SCENARIOS[name], proof) for name in names}
            return print_table("disturbance", scenarios, lambda: print_logs(folder))


def print_logs(folder: Path) -> None:
    for log in sorted(folder.glob("slurm-*")):
        print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
