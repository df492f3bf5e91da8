"""Trains on two hosts, takes links, ranks and hosts away, and compares losses with those of an undisturbed run on one.

    .venv/bin/python tools/two_hosts_proof.py                                # some minutes
    .venv/bin/python tools/two_hosts_proof.py --only cut_link lost_host      # some of them
    .venv/bin/python tools/two_hosts_proof.py --engine deepspeed

The hosts are namespaces (tools/two_hosts.py), for each case new ones: needs root and iproute2; `hostfile` needs
openssh-server and pdsh too. Exit code 1 where a run does not end as it should, or its losses differ: bit for bit where
two ranks trained, by more than 1e-5 where one of them trained alone for some steps.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ssh_hosts
from proof_runs import Runs, Skipped, is_worker, launcher, print_table
from two_hosts import Host, TwoHosts, missing

WATCHDOG = 8  # seconds
TOLERANCE = 1e-5  # of a loss, relative
WATCHED = f"watchdog={{seconds: {WATCHDOG}, first_seconds: 300}}"
# A host boots while the other trains alone: larger batches, so that fewer steps take longer; and small steps, since at
# large ones the rounding of another world size grows from one to the next, disturbed or not.
SLOW = ("batch.global_batch=512", "optimizer.lr=1.0e-4", "schedule.epochs=20", "evaluation.every_epochs=20", WATCHED)


class Proof(Runs):
    """Runs of so many `steps` on the hosts, with a checkpoint each quarter of them."""

    def __init__(self, folder: Path, engine: str, steps: int):
        self.steps, self.quarter = steps, steps // 4
        length = (f"schedule.max_steps={steps}", f"checkpoint.every_steps={self.quarter}")
        super().__init__(folder, f"engine.name={engine}", *length, NETWORK="gloo")

    def on_one(self, run: str, host: Host, *settings: str, procs: int = 1) -> subprocess.Popen:
        return self._start(run, host, *settings, PROCS_PER_NODE=str(procs))

    def on_both(self, run: str, hosts: Sequence[Host], *settings: str, **environment: str) -> list[subprocess.Popen]:
        return [self.join(run, host, *settings, **environment) for host in hosts]

    def join(self, run: str, host: Host, *settings: str, **environment: str) -> subprocess.Popen:
        """The line that is the same on every host."""
        meet = {"NODES": "2", "MASTER_ADDR": "nodea", "PROCS_PER_NODE": "1"}
        return self._start(run, host, *settings, **{**meet, **environment})

    def _start(self, run: str, host: Host, *settings: str, **environment: str) -> subprocess.Popen:
        return self.start(run, launcher("torchrun.sh"), settings=settings, starter=host.start, **environment)

    def world(self, run: str) -> int:
        """How many processes the run had when it last started."""
        path = self.folder / run / "environment.json"
        return json.loads(path.read_text())["world_size"] if path.exists() else 0

    def went_on_at(self, run: str) -> list[int]:
        """Steps of the checkpoints at which it was taken up."""
        return [int(step) for step in re.findall(r"^going on from .*/step-(\d+)$", self.said(run), re.MULTILINE)]

    def compare(self, run: str, same_until: int | None = None, undisturbed: str = "one_host") -> str:
        """Every step is there; up to `same_until` losses are equal bit for bit, and within the tolerance later."""
        same_until = self.steps if same_until is None else same_until
        expected, losses = self.losses(undisturbed), self.losses(run)
        assert losses.keys() == expected.keys() and len(losses) == self.steps, f"{run}: {len(losses)} losses"
        different = [step for step in losses if losses[step] != expected[step]]
        if not different:
            return "equal bit for bit"
        largest = max(abs(losses[step] / expected[step] - 1) for step in different)
        what = f"losses equal bit for bit up to step {different[0] - 1}, later within {largest:.0e}"
        if different[0] <= same_until or largest > TOLERANCE:
            raise AssertionError(f"{run}: {what}; expected: up to {same_until}, then {TOLERANCE:.0e}")
        return what


def one_host(proof: Proof, nodea: Host, nodeb: Host) -> str:
    """Two processes that nobody disturbs: theirs are the losses that all others must have."""
    proof.end("one_host", proof.on_one("one_host", nodea, procs=2))
    assert len(proof.losses("one_host")) == proof.steps
    return "the losses to be met"


def both_hosts(proof: Proof, nodea: Host, nodeb: Host) -> str:
    proof.end("both_hosts", *proof.on_both("both_hosts", (nodea, nodeb)))
    return proof.compare("both_hosts")


def cut_link(proof: Proof, nodea: Host, nodeb: Host) -> str:
    """Both ranks wait for one another; each ends itself. Then one host goes on alone, and later both do."""
    run = "cut_link"
    near, far = proof.on_both(run, (nodea, nodeb), WATCHED)
    proof.until_step(run, proof.quarter + 5, near, far)
    nodeb.unplug()
    proof.end(run, near, code=1)
    cut_at = len(proof.losses(run))
    proof.end(run, proof.on_one(run, nodea, f"schedule.max_steps={3 * proof.quarter}"))
    proof.end(run, far, code=1)  # by then nobody has answered it for long
    silent = [_silence(proof.folder / run / "logs", rank) for rank in range(2)]
    nodeb.plug()
    proof.end(run, *proof.on_both(run, (nodea, nodeb)))
    alone, together = proof.went_on_at(run)
    assert proof.quarter <= alone <= cut_at and together == 3 * proof.quarter
    ended = f"cut at step {cut_at}, the watchdogs ended both ranks after {silent[0]} and {silent[1]} s"
    return f"{ended}; one host went on at step {alone}, both at step {together}; {proof.compare(run, alone)}"


def _silence(logs: Path, rank: int) -> int:
    """For how many seconds a rank stood still before its watchdog ended it, and left stacks and collectives."""
    stacks = (logs / f"rank-{rank}.hang.txt").read_text()
    seconds = int(re.search(rf"rank {rank}: no progress for (\d+) seconds", stacks)[1])
    assert "train/loop.py" in stacks and WATCHDOG <= seconds < 2 * WATCHDOG, stacks
    assert json.loads((logs / f"rank-{rank}.flight.json").read_text())["entries"]
    return seconds


def lost_host(proof: Proof, nodea: Host, nodeb: Host) -> str:
    """torchrun goes on with one host where `NODES=1:2` allows it, and with two when the other is back."""
    run, elastic = "lost_host", {"NODES": "1:2", "MAX_RESTARTS": "3"}
    proof.end("slow", proof.on_one("slow", nodea, *SLOW, procs=2))
    survivor, lost = proof.on_both(run, (nodea, nodeb), *SLOW, **elastic)
    proof.until_step(run, proof.quarter + 5, survivor, lost)
    lost_at = time.monotonic()
    nodeb.lose_power()
    proof.until(run, "one host trains alone", lambda: proof.world(run) == 1, survivor)
    took = time.monotonic() - lost_at
    nodeb.boot()
    back = proof.join(run, nodeb, *SLOW, **elastic)
    proof.end(run, survivor, back)
    alone, together = proof.went_on_at(run)
    assert proof.world(run) == 2
    trained = f"one host went on at step {alone}, {took:.0f} s later, both at step {together}"
    return f"{trained}; {proof.compare(run, alone, 'slow')}"


def killed_rank(proof: Proof, nodea: Host, nodeb: Host, rank: int = 1) -> str:
    """torchrun starts all ranks anew on both hosts."""
    run = f"killed_rank_{rank}"
    both = proof.on_both(run, (nodea, nodeb), MAX_RESTARTS="1")
    proof.until_step(run, proof.quarter + 5, *both)
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in (nodea, nodeb)[rank].processes()}
    os.kill(next(pid for pid, command in commands.items() if is_worker(command, proof.folder / run)), signal.SIGKILL)
    proof.end(run, *both)
    (step,) = proof.went_on_at(run)
    return f"both went on at step {step}; {proof.compare(run)}"


def hostfile(proof: Proof, nodea: Host, nodeb: Host) -> str:
    """The launcher of DeepSpeed, over an sshd on each host."""
    if reason := ssh_hosts.missing():
        raise Skipped(reason)
    daemons = {host.name: ssh_hosts.Daemon(host.address, "22", host.start) for host in (nodea, nodeb)}
    with ssh_hosts.ssh_hosts(proof.folder / "ssh", daemons) as ssh_config:
        hosts = proof.folder / "hosts"
        hosts.write_text("".join(f"{name} slots=1\n" for name in daemons))
        command = [launcher("deepspeed_hostfile.sh"), str(hosts)]
        started = proof.start("hostfile", *command, starter=nodea.start, SSH_ARGS=f"-F {ssh_config}")
        proof.end("hostfile", started)
    assert all(f"{name}:" in proof.said("hostfile") for name in daemons), "both hosts took part"
    return proof.compare("hostfile")


def two_runs(proof: Proof, nodea: Host, nodeb: Host) -> str:
    """At once on the same hosts, each with a port of its own."""
    ports = {"first": "29500", "second": "29600"}
    started = {run: proof.on_both(run, (nodea, nodeb), MASTER_PORT=port) for run, port in ports.items()}
    for run, processes in started.items():
        proof.end(run, *processes)
    return " and ".join(proof.compare(run) for run in ports)


CASES: dict[str, Callable[[Proof, Host, Host], str]] = {
    "one_host": one_host,
    "both_hosts": both_hosts,
    "cut_link": cut_link,
    "lost_host": lost_host,
    "killed_rank_1": killed_rank,
    "killed_rank_0": partial(killed_rank, rank=0),
    "hostfile": hostfile,
    "two_runs": two_runs,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of each run (200)")
    parser.add_argument("--engine", default="accelerate", choices=("accelerate", "deepspeed"))
    args = parser.parse_args(argv)
    if reason := missing():
        print(f"two_hosts_proof: error: {reason}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    names = dict.fromkeys(["one_host", *(args.only or CASES)])
    with (
        tempfile.TemporaryDirectory(prefix="two-hosts-proof-") as folder,
        Proof(Path(folder), args.engine, args.steps) as proof,
    ):
        return print_table("on two hosts", {name: partial(_on_new_hosts, proof, CASES[name]) for name in names})


def _on_new_hosts(proof: Proof, case: Callable[[Proof, Host, Host], str]) -> str:
    with TwoHosts() as hosts:
        return case(proof, *hosts)


if __name__ == "__main__":
    sys.exit(main())
