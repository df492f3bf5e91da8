"""What one host brings to a run."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from importlib.metadata import requires
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from crate_graph.cluster.versions import installed, versions
from crate_graph.doctor.check import Check, amount

FREE_BYTES, FREE_FILES = 20e9, 10_000  # room for a few checkpoints of a large model
MEMORY_PER_PROCESS = 4e9  # PyTorch, a model, its optimizer and two loader workers
OPEN_FILES = 1024  # a reader keeps 64 shards open; tensors on their way from workers take one each
SHARED_MEMORY = 1e9  # where no recipe tells what its workers need


def examine_host(run_dir: Path, processes: int, shared_bytes: float | None) -> list[tuple]:
    """(name, function, arguments) of each check of this host, which is to run `processes` of the run."""
    return [
        ("versions", check_versions),
        ("devices", check_devices, processes),
        ("run folder", check_folder, run_dir),
        ("shared memory", check_shared_memory, Path("/dev/shm"), shared_bytes),
        ("memory", check_memory, processes),
        ("open files", check_open_files),
    ]


def check_versions() -> list[Check]:
    """What is installed, against what the package asks for."""
    wanted = [Requirement(text) for text in requires("crate-graph") or ()]
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = [
        f"{need.name} {installed(need.name)} (needs {need.specifier or 'any'})"
        for need in wanted
        if installed(need.name) == "none" or not need.specifier.contains(installed(need.name), prereleases=True)
    ]
    found = ", ".join(f"{name} {value}" for name, value in versions().items())
    found += f", CUDA {torch.version.cuda or 'none'}"
    if wrong:
        return [Check("versions", "failed", ", ".join(wrong), "pip install -c tools/constraints.txt -e . mends it")]
    return [Check("versions", "ok", found)]


def check_devices(processes: int) -> list[Check]:
    """GPUs as PyTorch sees them, beside those that the driver knows."""
    known = _nvidia_smi()
    if not torch.cuda.is_available():
        if known:
            return [
                Check(
                    "devices",
                    "failed",
                    f"the driver knows {len(known)} GPUs ({known[0]}), and PyTorch {torch.__version__} can use none",
                    "unset CUDA_VISIBLE_DEVICES, or install a driver as new as the CUDA that PyTorch was built with",
                )
            ]
        return [Check("devices", "warning", "no GPU", "it trains on the CPU; for a GPU look at nvidia-smi")]
    count = torch.cuda.device_count()
    about = [torch.cuda.get_device_properties(n) for n in range(count)]
    names = sorted({f"{each.name} with {amount(each.total_memory)}" for each in about})
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    driver = known[0].rpartition(", ")[2] if known else "unknown"
    found = f"{count} x {', '.join(names)}; driver {driver}, CUDA {torch.version.cuda}, NCCL {nccl}"
    if len(names) > 1:
        return [Check("devices", "warning", found, "the slowest of unlike GPUs sets the pace of all")]
    if processes > count > 1:
        return [Check("devices", "failed", f"{processes} processes, {found}", f"start {count} processes on this host")]
    return [Check("devices", "ok", found)]


def _nvidia_smi() -> list[str]:
    """`name, driver version` of each GPU."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return said.stdout.splitlines() if said.returncode == 0 else []


def check_folder(folder: Path) -> list[Check]:
    """Room, and a file written as checkpoints are: written, synchronised, renamed into place."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as scratch:
            _write_safely(Path(scratch))
    except OSError as error:
        return [
            Check("run folder", "failed", f"{folder}: {error.strerror}", "choose another --run-dir, or make room there")
        ]
    room = os.statvfs(there)
    free, files = room.f_bavail * room.f_frsize, room.f_favail
    found = f"{folder}: {amount(free)} free, " + (f"{files:,} files can be made" if room.f_files else "any files")
    if free < FREE_BYTES or (room.f_files and files < FREE_FILES):
        remedy = f"checkpoints may need more than {amount(FREE_BYTES)} and {FREE_FILES:,} files: make room"
        return [Check("run folder", "warning", found, remedy)]
    return [Check("run folder", "ok", found)]


def _write_safely(scratch: Path) -> None:
    with (scratch / "new").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch / "new", scratch / "file")
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename, too
    finally:
        os.close(descriptor)


def check_shared_memory(folder: Path, needed: float | None) -> list[Check]:
    """Loader workers hand large batches over in `folder`, and NCCL has its buffers there."""
    if not folder.is_dir():
        return [Check("shared memory", "failed", f"no {folder}", "mount a tmpfs there")]
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {amount(free)} free"
    if needed is not None:
        found += f", loader workers need {amount(needed)}"
    remedy = "docker run --shm-size=..., in Kubernetes an emptyDir of medium Memory there; or data.workers=0"
    if needed is not None and free < needed:
        return [Check("shared memory", "failed", found, remedy)]
    return [Check("shared memory", "ok" if free >= SHARED_MEMORY else "warning", found, remedy)]


def check_memory(processes: int) -> list[Check]:
    """What is available, also to the control group that this process is in."""
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _group_limit()
    found = f"{amount(available)} of {amount(total)} available"
    if limit is not None and limit < total:
        found += f", {amount(limit)} allowed to this control group"
        available = min(available, limit)
    needed = processes * MEMORY_PER_PROCESS
    if available < needed:
        remedy = f"{processes} processes want about {amount(needed)}: ask the scheduler for more (--mem=0 in Slurm)"
        return [Check("memory", "warning", found, remedy)]
    return [Check("memory", "ok", found)]


def _group_limit() -> int | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):
            continue
    return None


def check_open_files() -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} for a process (limit {hard:,})"
    if soft < OPEN_FILES:
        return [Check("open files", "failed", found, f"ulimit -n {max(OPEN_FILES, min(hard, 65_536))} before the run")]
    return [Check("open files", "ok", found)]
