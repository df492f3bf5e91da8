"""A real Slurm on this host: slurmctld, munged and one slurmd per node, all below one folder, ended with the block.

    with SmallSlurm(folder) as slurm:
        job = slurm.submit("launch/slurm.sbatch", "train", "quickstart")

Needs root, and `apt-get install slurm-wlm munge`. Nothing outside of the folder is written.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "scontrol")

CONFIGURATION = """\
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=30
KillWait=15
MessageTimeout=60
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=1:00:00 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no Slurm can be started here, if so."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)" if absent else None


class SmallSlurm:
    def __init__(self, folder: Path, nodes: int = 2):
        self.folder = folder
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SmallSlurm:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = _free_ports(1 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            f"RealMemory=8000 State=UNKNOWN"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        text = CONFIGURATION.format(host=socket.gethostname(), port=ports[0], folder=self.folder, nodes=nodes)
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._stack.callback(self._end)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what slurmd leaves behind becomes ours to collect
        try:
            munge = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
            munge |= {"seed-file": "munge.seed"}
            options = [f"--{option}={self.folder / file}" for option, file in munge.items()]
            self._start("munged", "--foreground", "--force", *options)
            self.until("munged listens", (self.folder / "munge.sock").exists, 20)
            self._start("slurmctld", "-D")
            for node in self.nodes:
                self.start_node(node)
            self.until("all nodes are idle", lambda: self.node_states() == {"IDLE"}, 60)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """As when the power fails: slurmd and all that it runs are gone at once."""
        lost = [pid for pid in processes() if f"SLURMD_NODENAME={node}" in _environment(pid)]
        keepers = {parent for pid in lost if "slurmstepd" in command(parent := _parent(pid))}
        for pid in [self._daemons[node].pid, *keepers, *lost]:
            _kill(pid, signal.SIGKILL)
        self._daemons.pop(node).wait()

    def node_states(self) -> set[str]:
        lines = self.call("scontrol", "show", "nodes", "--oneliner", check=False).splitlines()
        return (
            {_fields(line)["State"] for line in lines if "State=" in line} if len(lines) >= len(self.nodes) else set()
        )

    def submit(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """`sbatch` with these words; returns the job's number."""
        answer = self.call("sbatch", "--parsable", *words, cwd=cwd, **environment)
        return answer.strip().splitlines()[-1].split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by key."""
        return _fields(self.call("scontrol", "show", "job", "--oneliner", number))

    def start_soon(self, number: str) -> None:
        """A requeued job waits for two minutes; here for some seconds, without which its nodes refuse it."""
        fields = self.job(number)
        begins = fields.get("EligibleTime", "")
        if fields["JobState"] != "PENDING" or not begins.startswith("20"):
            return
        if datetime.fromisoformat(begins) - datetime.now() > timedelta(seconds=10):
            self.call("scontrol", "update", f"jobid={number}", "StartTime=now+4", check=False)

    def call(
        self, *words: str, check: bool = True, timeout: float = 120, cwd: Path | None = None, **environment: str
    ) -> str:
        """What a command of Slurm prints."""
        settings = {**self.environment, **environment}
        done = subprocess.run(words, cwd=cwd, env=settings, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def until(self, what: str, holds: Callable[[], object], seconds: float) -> None:
        """Wait until `holds()`; a TimeoutError says what never came."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}; logs are in {self.folder}")
            time.sleep(0.2)

    def _start(self, program: str, *words: str, name: str | None = None) -> None:
        with (self.folder / f"{name or program}.out").open("a") as out:
            self._daemons[name or program] = subprocess.Popen(
                [shutil.which(program) or program, *words], env=self.environment, stdout=out, stderr=out, stdin=-3
            )

    def _end(self) -> None:
        """Jobs first: a step whose slurmctld is gone does not end by itself."""
        if "slurmctld" in self._daemons:
            self.call("scancel", "--user=root", check=False)
            try:
                self.until("jobs have ended", lambda: not self.call("squeue", "--noheader", check=False).strip(), 30)
            except TimeoutError as error:
                print(error)
        ours = f"SLURM_CONF={self.folder / 'slurm.conf'}"
        for name in [*self.nodes, "slurmctld", "munged"]:
            if daemon := self._daemons.pop(name, None):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        for pid in processes():
            if pid != os.getpid() and ours in _environment(pid):
                _kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def _environment(pid: int) -> list[str]:
    return _read(pid, "environ").split("\0")


def command(pid: int) -> str:
    return _read(pid, "cmdline")


def _parent(pid: int) -> int:
    status = _read(pid, "stat")
    return int(status.rpartition(")")[2].split()[1]) if status else 0


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
