"""Rank discovery: the one reader of the environment variables by which a launcher tells a process its place.

The nearest launcher knows best: torchrun (and what works like it: accelerate, the deepspeed launcher), which may itself
be the task of an srun step or of mpirun; then srun; then Open MPI's mpirun. A job's variables alone, as a batch script
or `salloc` has them, start nothing: only a step has ranks.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crate_graph.errors import UserError

if TYPE_CHECKING:
    import torch

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUN_SIGNS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # set by torchrun, and by the deepspeed launcher
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
_MPI_DAEMON_SIGNS = ("OMPI_MCA_orte_launch", "PRTE_LAUNCHED")  # Open MPI 4 and 5: this process is a child of mpirun's
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0  # numbers from here on are no srun: the batch script, an interactive shell
_FIRST_PORT, _PORTS = 20_000, 10_000  # below those that Linux hands out by itself


@dataclass(frozen=True)
class Ranks:
    """Place of this process: `rank` of `world` processes, `local_rank` on its host; rank 0 listens at `master`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    master: tuple[str, int] | None = None  # host and port
    run: str = field(default="", compare=False)  # tells the run from others, where the launcher does

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU. Slurm may show each process a GPU of its own, which is then the first.

        Raises:
            UserError: the host has more processes than visible GPUs.
        """
        import torch

        if not torch.cuda.is_available():
            return torch.device("cpu")
        visible = torch.cuda.device_count()
        if visible > 1 and self.local_rank >= visible:
            raise UserError(
                f"{socket.gethostname()}: process {self.local_rank} of this host has no GPU, {visible} are visible; "
                f"start {visible} processes per host"
            )
        return torch.device("cuda", self.local_rank if visible > 1 else 0)


def discover() -> Ranks:
    """Read the place of this process from its launcher's variables; without them it is alone.

    Raises:
        UserError: some of the variables are set and others are not, or they contradict each other.
    """
    return read_ranks(os.environ)


def export(ranks: Ranks) -> None:
    """Set torchrun's variables where another launcher was at work: PyTorch, Accelerate and DeepSpeed read those."""
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed refuses to start without it
    if ranks.master is None:
        return
    host, port = ranks.master
    values = (ranks.rank, ranks.world, ranks.local_rank, host, port)
    os.environ.update(zip(_TORCHRUN, map(str, values), strict=True))


def read_ranks(environment: Mapping[str, str]) -> Ranks:
    """As `discover`, of any set of variables."""
    places = [place for read in (_of_torchrun, _of_srun, _of_open_mpi) if (place := read(environment)) is not None]
    if not places:
        return Ranks()
    nearest, *others = places
    for other in others:
        if nearest.place != other.place and not nearest.inside(other):
            raise UserError(
                f"environment: {nearest.text} contradicts {other.text}; start the processes by one launcher, and unset "
                f"the variables of the other"
            )
    rank, world, local_rank = nearest.place
    if world == 1:
        return Ranks(rank, world, local_rank)
    return Ranks(rank, world, local_rank, nearest.master(environment), nearest.run(environment))


@dataclass(frozen=True)
class _Place:
    """What one launcher says."""

    launcher: str
    names: tuple[str, ...]
    place: tuple[int, int, int]  # rank, world, local rank
    nested: bool = False  # the launcher shows that it started this process, whatever started the launcher

    @property
    def text(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in zip(self.names, self.place, strict=True))
        return f"{values} ({self.launcher})"

    def inside(self, other: _Place) -> bool:
        return self.nested and not other.nested

    def master(self, environment: Mapping[str, str]) -> tuple[str, int]:
        """Where rank 0 listens: as the variables say, else from what the launcher tells of the job."""
        host = environment.get("MASTER_ADDR") or _first_host(self, environment)
        port = environment.get("MASTER_PORT") or _port(environment)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"environment: MASTER_PORT={port} is not a port; set a whole number from 1 to 65535")
        return host, int(port)

    def run(self, environment: Mapping[str, str]) -> str:
        """What all processes of the run, and no others, are told."""
        if self.launcher == "srun":
            return "job " + ".".join(environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        if self.launcher == "mpirun":
            return "mpirun " + (environment.get("OMPI_MCA_ess_base_jobid") or environment.get("PMIX_NAMESPACE", ""))
        return environment.get("TORCHELASTIC_RUN_ID", "")


def _of_torchrun(environment: Mapping[str, str]) -> _Place | None:
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    return _place("torchrun", _TORCHRUN, environment, nested=any(name in environment for name in _TORCHRUN_SIGNS))


def _of_srun(environment: Mapping[str, str]) -> _Place | None:
    step = environment.get("SLURM_STEP_ID", "")
    is_step = "SLURM_PROCID" in environment and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP
    if not is_step or (_is_open_mpi(environment) and _started_by_mpi_daemon(environment)):
        return None
    return _place("srun", _SRUN, environment)


def _of_open_mpi(environment: Mapping[str, str]) -> _Place | None:
    if not _is_open_mpi(environment):
        return None
    return _place("mpirun", _OPEN_MPI, environment)


def _is_open_mpi(environment: Mapping[str, str]) -> bool:
    return any(name in environment for name in _OPEN_MPI[:2])


def _started_by_mpi_daemon(environment: Mapping[str, str]) -> bool:
    """In an allocation mpirun makes a step of its own, whose tasks are daemons and not the ranks."""
    return any(name in environment for name in _MPI_DAEMON_SIGNS)


def _place(launcher: str, names: tuple[str, ...], environment: Mapping[str, str], nested: bool = False) -> _Place:
    missing = [name for name in names if name not in environment]
    if missing:
        there = next(name for name in names if name in environment)
        raise UserError(
            f"environment: {', '.join(missing)} not set although {there} is; start with {launcher}, or unset {there}"
        )
    try:
        rank, world, local_rank = (int(environment[name]) for name in names[:3])
    except ValueError as error:
        raise UserError(f"environment: {', '.join(names[:3])} must be whole numbers ({error})") from None
    if not 0 <= rank < world or local_rank < 0:
        place = ", ".join(f"{name}={environment[name]}" for name in names[:3])
        raise UserError(
            f"environment: {place} name no process: {names[0]} must be below {names[1]}; start with {launcher}"
        )
    return _Place(launcher, names[:3], (rank, world, local_rank), nested)


def _first_host(place: _Place, environment: Mapping[str, str]) -> str:
    """The host of rank 0: the first of the step, or of mpirun's allocation."""
    if place.launcher == "mpirun" and environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(place.place[1]):
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") if place.launcher == "srun" else None
    nodes = nodes or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError(
            f"environment: {place.text} on many hosts, and MASTER_ADDR does not say which of them has rank 0; set it "
            f"for all (mpirun -x MASTER_ADDR=HOST)"
        )
    return _address(first_node(nodes))


def first_node(nodes: str) -> str:
    """The first of Slurm's short form of a list of nodes: `gpu[007-012,20],login` begins with gpu007."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _address(node: str) -> str:
    """A node's name where it resolves, else the address that Slurm knows it by."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        words = ["scontrol", "show", "node", "--oneliner", node]
        said = subprocess.run(words, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    address = re.search(r"\bNodeAddr=(\S+)", said)
    if address is None:
        raise UserError(f"environment: the name of node {node} does not resolve here; set MASTER_ADDR to its address")
    return address[1]


def _port(environment: Mapping[str, str]) -> str:
    """The same on all processes of a step, and another for each step."""
    job = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    numbers = [*job, environment.get("OMPI_MCA_ess_base_jobid") or environment.get("PMIX_NAMESPACE", "0")]
    total = sum(int(digits) for number in numbers for digits in re.findall(r"\d+", number))
    return str(_FIRST_PORT + total % _PORTS)
