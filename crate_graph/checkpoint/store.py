"""The folder of a run's checkpoints: atomic writes, listing, retention.

A checkpoint is built under a hidden name and renamed into place when all of it is on disk, so what has the name
`step-XXXXXXXX` is whole, whatever happened while it was written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crate_graph.checkpoint.manifest import FORMAT, MANIFEST, describe, read_manifest, seal
from crate_graph.config.schema import Checkpoint as Retention
from crate_graph.errors import UserError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")
_WRITING, _DELETING = ".writing-", ".deleting-"


@dataclass(frozen=True)
class Entry:
    """A whole checkpoint."""

    path: Path
    step: int
    manifest: dict[str, Any]


class CheckpointStore:
    """Checkpoints under `folder`. Only the main process of a run writes; anybody may read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def folders(self, whole: bool = True) -> list[tuple[int, Path]]:
        """(step, folder) of each checkpoint in the order of the steps; if `whole` of those that have a manifest."""
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*"))
        found = sorted((int(match[1]), path) for match, path in named if match)
        return [(step, path) for step, path in found if not whole or (path / MANIFEST).is_file()]

    def entries(self) -> list[Entry]:
        """Whole checkpoints in the order of their steps. One whose manifest cannot be read is left out, and logged."""
        found = []
        for step, path in self.folders():
            try:
                found.append(Entry(path, step, read_manifest(path)))
            except UserError as error:
                logger.warning("checkpoint left out: %s", error)
        return found

    def newest(self) -> Entry | None:
        """The newest checkpoint.

        Raises:
            UserError: its manifest cannot be read.
        """
        folders = self.folders()
        return Entry(folders[-1][1], folders[-1][0], read_manifest(folders[-1][1])) if folders else None

    def write(self, step: int, files: dict[str, bytes], facts: dict[str, Any]) -> Path:
        """Write a checkpoint; `facts` go into its manifest beside the files' checksums.

        Raises:
            OSError: the disk is full, say. What was begun is removed and the checkpoints that exist are untouched.
        """
        target = self.folder / f"step-{step:08d}"
        manifest = seal({"format": FORMAT, "step": step, "files": describe(files), **facts})
        self.folder.mkdir(parents=True, exist_ok=True)
        building = self.folder / f"{_WRITING}{target.name}"
        shutil.rmtree(building, ignore_errors=True)
        try:
            building.mkdir()
            for name, data in files.items():
                _write_durably(building / name, data)
            _write_durably(building / MANIFEST, json.dumps(manifest, indent=1).encode())
            _sync_folder(building)
            self._delete(target)  # what has this name and is not whole, or the same step of the same run
            building.rename(target)
            _sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return target

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-deleted."""
        for prefix in (_WRITING, _DELETING):
            for path in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, retention: Retention, metric: str) -> list[Path]:
        """Delete what the retention rule does not keep; returns what was deleted."""
        kept = _kept_steps(self.entries(), retention, metric)
        deleted = [entry.path for entry in self.entries() if entry.step not in kept]
        for path in deleted:
            self._delete(path)
        return deleted

    def _delete(self, path: Path) -> None:
        """Under another name first, so that a half-deleted checkpoint is never picked up."""
        if not path.exists():
            return
        doomed = path.with_name(f"{_DELETING}{path.name}")
        path.rename(doomed)
        if doomed.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()


def _kept_steps(entries: list[Entry], retention: Retention, metric: str) -> set[int]:
    kept = {entry.step for entry in entries[-retention.keep_last :]}
    if retention.keep_every:
        kept |= {entry.step for entry in entries if entry.step % retention.keep_every == 0}
    kept |= {entry.step for entry in best_entries(entries, metric)[: retention.keep_best]}
    return kept


def best_entries(entries: list[Entry], metric: str) -> list[Entry]:
    """Evaluated checkpoints, best first; of equals the later one first."""
    lower_is_better = metric == "loss"
    evaluated = [entry for entry in entries if metric in entry.manifest["metrics"]]

    def rank(entry: Entry) -> tuple[float, int]:
        value = entry.manifest["metrics"][metric]
        return (value if lower_is_better else -value, -entry.step)

    return sorted(evaluated, key=rank)


def resolve(path: str | Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the newest one of a run folder.

    Raises:
        UserError: there is no checkpoint.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    newest = CheckpointStore(path / "checkpoints").newest() or CheckpointStore(path).newest()
    if newest is None:
        missing = "there are no checkpoints in it" if path.is_dir() else "there is no such folder"
        remedy = "name the folder of a run"
        if (path / "recipe.yaml").is_file():
            remedy = f"touch {path / 'save-now'} asks a run that trains for one"
        raise UserError(f"{path}: neither a checkpoint nor a run folder that holds one: {missing}; {remedy}")
    return newest.path


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
