"""The run folder: everything that a run leaves behind, in fixed places.

RUN/recipe.yaml  environment.json  init_from.json  metrics.jsonl  tensorboard/  checkpoints/  logs/rank-N.log
    summary.json
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from crate_graph.errors import RunFailed, UserError
from crate_graph.redaction import redact, redact_all
from crate_graph.whole_files import write_whole

_PACKAGES = (
    "crate-graph",
    "torch",
    "torchvision",
    "timm",
    "deepspeed",
    "accelerate",
    "webdataset",
    "numpy",
    "safetensors",
)


class RunFolder:
    """Paths of a run folder, and the lock that keeps a second run out of it."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.initialization = path / "init_from.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.summary = path / "summary.json"
        self.worth_keeping = False  # something was trained, or the log names damaged samples
        self._lock: Any = None
        self._new = False

    def claim(self) -> None:
        """Make the folder and lock it for this process (the main one of the run).

        Raises:
            UserError: it cannot be written, or another run is using it.
        """
        try:
            self._new = not self.path.exists()
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"{self.path}: the run folder cannot be written ({error.strerror}); choose another --run-dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.path}: another run is using this folder; wait for it, or choose another --run-dir"
            ) from None

    @contextmanager
    def discarded_if_refused(self) -> Iterator[None]:
        """A run that a user's mistake ends before it began leaves no folder behind."""
        try:
            yield
        except Exception as error:
            if _is_mistake(error) and self._new and not self.worth_keeping:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def check(self) -> None:
        """Raise RunFailed where the claimed folder is no longer under its name: what is written now would be mixed with
        another run's, or lost."""
        if self._lock is None:
            return
        try:
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / ".lock")):
                return
        except FileNotFoundError:
            pass
        raise RunFailed(
            f"{self.path}: the run folder was moved or removed while the run went on; put it back and start the same "
            f"command again, which goes on from its newest checkpoint"
        )

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_environment(self, world: int, device: torch.device) -> None:
        write_json(self.environment, _environment(world, device))

    def log_to_file(self, rank: int) -> logging.Handler:
        """Send the package's log to logs/rank-N.log; returns the handler, to be removed at the end."""
        handler = logging.FileHandler(self.logs / f"rank-{rank}.log")
        handler.handleError = lambda record: None  # a full disk is told in one line, not in a traceback for each record
        handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("crate_graph")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        return handler


def _is_mistake(error: Exception) -> bool:
    """Whether it is one that the command line tells in one line."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG)


class _Redacted(logging.Formatter):
    """No line of the log, of a traceback neither, shows what is in an address."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(redact, super().format(record).split("\n")))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_whole(path, json.dumps(_finite(value), indent=1) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment(world: int, device: torch.device) -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "python": sys.version.split()[0],
        "packages": packages,
        "git": _git_hash(),
        "host": platform.node(),
        "platform": platform.platform(),
        "world_size": world,
        "device_type": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cpu_threads": torch.get_num_threads(),
        "command": redact_all(sys.argv),
    }


def _git_hash() -> str | None:
    """Commit of the source tree that runs, with a mark where it was changed; None for an installed package."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
