"""A disk that is full, in a save and elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_lab import SAVE_EVERY, STEPS, Trial, expect
from proof_runs import Skipped

RECORDS = 48_000  # bytes that a life of a run needs besides its checkpoints


def disk_full(trial: Trial) -> tuple[str, str]:
    """No space left on the disk"""
    lab, in_save = trial.lab, 0
    one = size_of(lab.folder / "undisturbed" / "checkpoints" / f"step-{STEPS:08d}")
    rooms = (8_000, *(RECORDS + int(share * one) for share in (0.1, 0.3, 0.5, 0.7, 0.9)))  # bytes
    with small_disk(lab.folder / "disk", "4m") as disk:
        lab.start("disk/run", f"schedule.max_steps={3 * SAVE_EVERY}").end((0, 0))
        for room in rooms:
            fill(disk, room)
            life = lab.start("disk/run")
            codes = life.end()
            expect(codes[0] == 2 and codes[1] in (1, 2), f"ended with {codes}", life.text)
            line = next(line for line in life.text.splitlines() if line.startswith("crate-graph: error:"))
            expect(str(disk) in line and "No space left on device" in line and "make room" in line, "no cause", line)
            expect("Traceback" not in life.text, "a traceback", life.text)
            in_save += "could not be saved" in line
            (disk / "ballast").unlink()
            expect(not list((disk / "run" / "checkpoints").glob(".*")), "something half-made is left", life.text)
            lab.compare_so_far("disk/run")
        lab.start("disk/run").end((0, 0))
        lab.compare("disk/run")
    expect(in_save >= 3, f"only {in_save} saves met the full disk")
    what = "exit code 2, nothing half-made; with room again the run goes on, equal"
    return f"{len(rooms)}, of which {in_save} inside a save", what


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        raise Skipped("needs root, to mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        raise Skipped(f"no disk can be mounted ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave so many bytes of room, in whole blocks."""
    about = os.statvfs(disk)
    with (disk / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(1, about.f_bavail * about.f_frsize - room))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
