"""Trains the same recipe under every launcher but Slurm, two processes each, and compares their losses bit for bit.

    .venv/bin/python tools/launcher_proof.py                        # some minutes
    .venv/bin/python tools/launcher_proof.py --only mpirun hostfile # some of them

`mpirun` needs openmpi-bin; `hostfile` needs root, openssh-server and pdsh: two hosts are 127.0.0.1 and 127.0.0.2, each
with a real sshd. What cannot run says why. Exit code 1 where losses differ.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ssh_hosts
from proof_runs import Runs, Skipped, free_port, launcher, print_table

STEPS = 60
AGAIN = 75


def torchrun(proof: Runs) -> None:
    proof.end("torchrun", proof.start("torchrun", launcher("torchrun.sh"), PROCS_PER_NODE="2"))


def torchrun_signalled(proof: Runs) -> None:
    """SIGTERM to the launcher alone: the run saves, exit code 75; the same line goes on."""
    run = "torchrun_signalled"
    process = proof.start(run, launcher("torchrun.sh"), PROCS_PER_NODE="2")
    proof.until_step(run, 5, process)
    process.send_signal(signal.SIGTERM)
    proof.end(run, process, code=AGAIN)
    assert 5 <= len(proof.losses(run)) < STEPS
    proof.end(run, proof.start(run, launcher("torchrun.sh"), PROCS_PER_NODE="2"))


def torchrun_two_hosts(proof: Runs) -> None:
    meet = {"NODES": "2", "PROCS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    run = "torchrun_two_hosts"
    proof.end(run, *[proof.start(run, launcher("torchrun.sh"), **meet) for _ in range(2)])


def accelerate(proof: Runs) -> None:
    own = {"PROCS_PER_NODE": "2", "MASTER_PORT": free_port()}
    proof.end("accelerate", proof.start("accelerate", launcher("accelerate.sh"), **own))


def accelerate_two_hosts(proof: Runs) -> None:
    meet = {"NODES": "2", "PROCS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    run = "accelerate_two_hosts"
    proof.end(run, *[proof.start(run, launcher("accelerate.sh"), **meet, NODE_RANK=rank) for rank in "01"])


def mpirun(proof: Runs) -> None:
    if shutil.which("mpirun") is None:
        raise Skipped("mpirun is not installed (apt-get install openmpi-bin)")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-m", "crate_graph"]
    proof.end("mpirun", proof.start("mpirun", *command, **root))


def hostfile(proof: Runs) -> None:
    if reason := ssh_hosts.missing():
        raise Skipped(reason)
    port = free_port()
    daemons = {"hosta": ssh_hosts.Daemon("127.0.0.1", port), "hostb": ssh_hosts.Daemon("127.0.0.2", port)}
    with ssh_hosts.ssh_hosts(proof.folder / "ssh", daemons) as ssh_config:
        hosts = proof.folder / "hosts"
        hosts.write_text("".join(f"{name} slots=1\n" for name in daemons))
        settings = {"SSH_ARGS": f"-F {ssh_config}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        command = [launcher("deepspeed_hostfile.sh"), str(hosts)]
        proof.end("hostfile", proof.start("hostfile", *command, **settings))
    assert all(f"{name}:" in proof.said("hostfile") for name in daemons), "both hosts took part"


LAUNCHERS: dict[str, Callable[[Runs], None]] = {
    way.__name__: way
    for way in (
        torchrun,
        torchrun_signalled,
        torchrun_two_hosts,
        accelerate,
        accelerate_two_hosts,
        mpirun,
        hostfile,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LAUNCHERS, metavar="NAME", help=", ".join(LAUNCHERS))
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves the blocks, so that no daemon is left behind
    names = dict.fromkeys(["torchrun", *(args.only or LAUNCHERS)])
    with (
        tempfile.TemporaryDirectory(prefix="launcher-proof-") as folder,
        Runs(Path(folder), f"schedule.max_steps={STEPS}", GLOO_SOCKET_IFNAME="lo") as proof,
    ):
        return print_table("launcher", {name: partial(compare, proof, name) for name in names}, proof.stop)


def compare(proof: Runs, name: str) -> str:
    LAUNCHERS[name](proof)
    losses = proof.losses(name)
    if len(losses) != STEPS or losses != proof.losses("torchrun"):
        raise AssertionError(f"{len(losses)} losses, not those of torchrun")
    return "equal bit for bit"


if __name__ == "__main__":
    sys.exit(main())
