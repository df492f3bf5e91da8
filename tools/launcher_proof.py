"""Trains the same recipe under every launcher but Slurm, two processes each, and compares their losses bit for bit.

    .venv/bin/python tools/launcher_proof.py                        # some minutes
    .venv/bin/python tools/launcher_proof.py --only mpirun hostfile # some of them

`mpirun` needs openmpi-bin; `hostfile` needs root, openssh-server and pdsh: two hosts are 127.0.0.1 and 127.0.0.2, each
with a real sshd. What cannot run says why. Exit code 1 where losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from slurm_proof import RECIPE

ROOT = Path(__file__).parents[1]
STEPS = 60
DEADLINE = 400  # seconds for each run
AGAIN = 75


class Skipped(Exception):
    """Why a launcher cannot run here."""


class Proof:
    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = folder / "proof.yaml"
        self.recipe.write_text(RECIPE)
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHON": sys.executable, "PYTHONPATH": python_path}
        self._started: list[subprocess.Popen] = []
        self.environment = {**os.environ, **own, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def words(self, run: str) -> list[str]:
        return ["train", str(self.recipe), "--run-dir", str(self.folder / run), f"schedule.max_steps={STEPS}"]

    def start(self, run: str, *command: str, **environment: str) -> subprocess.Popen:
        with (self.folder / f"{run}.log").open("a") as log:
            process = subprocess.Popen(
                [*command, *self.words(run)],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def end(self, run: str, *processes: subprocess.Popen, code: int = 0) -> None:
        codes = [process.wait(DEADLINE) for process in processes]
        if codes != [code] * len(processes):
            log = (self.folder / f"{run}.log").read_text()
            raise AssertionError(f"{run} ended with {codes} instead of {code}\n{log[-4000:]}")

    def __enter__(self) -> Proof:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End what has not ended."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
                process.wait(60)

    def losses(self, run: str) -> dict[int, float]:
        path = self.folder / run / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {record["step"]: record["loss"] for record in records if "loss" in record}


def launcher(name: str) -> str:
    return str(ROOT / "launch" / name)


def torchrun(proof: Proof) -> None:
    proof.end("torchrun", proof.start("torchrun", launcher("torchrun.sh"), PROCS_PER_NODE="2"))


def torchrun_signalled(proof: Proof) -> None:
    """SIGTERM to the launcher alone: the run saves, exit code 75; the same line goes on."""
    run = "torchrun_signalled"
    process = proof.start(run, launcher("torchrun.sh"), PROCS_PER_NODE="2")
    deadline = time.monotonic() + DEADLINE
    while len(proof.losses(run)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    proof.end(run, process, code=AGAIN)
    assert 5 <= len(proof.losses(run)) < STEPS
    proof.end(run, proof.start(run, launcher("torchrun.sh"), PROCS_PER_NODE="2"))


def torchrun_two_hosts(proof: Proof) -> None:
    meet = {"NODES": "2", "PROCS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    run = "torchrun_two_hosts"
    proof.end(run, *[proof.start(run, launcher("torchrun.sh"), **meet) for _ in range(2)])


def accelerate(proof: Proof) -> None:
    own = {"PROCS_PER_NODE": "2", "MASTER_PORT": free_port()}
    proof.end("accelerate", proof.start("accelerate", launcher("accelerate.sh"), **own))


def accelerate_two_hosts(proof: Proof) -> None:
    meet = {"NODES": "2", "PROCS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    run = "accelerate_two_hosts"
    proof.end(run, *[proof.start(run, launcher("accelerate.sh"), **meet, NODE_RANK=rank) for rank in "01"])


def mpirun(proof: Proof) -> None:
    if shutil.which("mpirun") is None:
        raise Skipped("mpirun is not installed (apt-get install openmpi-bin)")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-m", "crate_graph"]
    proof.end("mpirun", proof.start("mpirun", *command, **root))


def hostfile(proof: Proof) -> None:
    with two_hosts(proof.folder / "ssh") as ssh_config:
        hosts = proof.folder / "hosts"
        hosts.write_text("hosta slots=1\nhostb slots=1\n")
        settings = {"SSH_ARGS": f"-F {ssh_config}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        command = [launcher("deepspeed_hostfile.sh"), str(hosts)]
        proof.end("hostfile", proof.start("hostfile", *command, **settings))
        seen = (proof.folder / "hostfile.log").read_text()
        assert "hosta:" in seen and "hostb:" in seen, "both hosts took part"


@contextmanager
def two_hosts(folder: Path) -> Iterator[Path]:
    """A real sshd on 127.0.0.1 and on 127.0.0.2; yields the ssh configuration that calls them hosta and hostb."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if os.geteuid() != 0 or sshd is None or shutil.which("pdsh") is None:
        raise Skipped("needs root, and apt-get install openssh-server pdsh")
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    port, daemons, aliases = free_port(), [], ""
    for name, address in (("hosta", "127.0.0.1"), ("hostb", "127.0.0.2")):
        options = {
            "ListenAddress": f"{address}:{port}",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "user.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
        }
        words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
        daemons.append(subprocess.Popen([sshd, "-D", "-f", "/dev/null", "-E", str(folder / f"{name}.log"), *words]))
        aliases += (
            f"Host {name}\n  HostName {address}\n  Port {port}\n  User root\n  IdentityFile {folder / 'user'}\n"
            f"  StrictHostKeyChecking no\n  UserKnownHostsFile {folder / 'known_hosts'}\n"
        )
    (folder / "config").write_text(aliases)
    try:
        yield folder / "config"
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


LAUNCHERS: dict[str, Callable[[Proof], None]] = {
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
    with tempfile.TemporaryDirectory(prefix="launcher-proof-") as folder, Proof(Path(folder)) as proof:
        return prove(proof, list(dict.fromkeys(["torchrun", *(args.only or LAUNCHERS)])))


def prove(proof: Proof, names: list[str]) -> int:
    failed = 0
    print("| launcher | losses | seconds |\n|---|---|---|", flush=True)
    for name in names:
        started = time.monotonic()
        try:
            LAUNCHERS[name](proof)
            if len(proof.losses(name)) != STEPS or proof.losses(name) != proof.losses("torchrun"):
                raise AssertionError(f"{len(proof.losses(name))} losses, not those of torchrun")
            outcome = "equal bit for bit"
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed += 1
            proof.stop()
            outcome = f"FAILED: {error}"
        print(f"| {name} | {outcome} | {time.monotonic() - started:.0f} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
