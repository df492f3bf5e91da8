"""What the processes of a run must have in common: versions, and the code itself."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """What is compared between processes, by name. Nothing is imported for it: DeepSpeed takes seconds."""
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__,
        "crate_graph": installed("crate-graph"),
        "code of crate_graph": code_digest(),
        "deepspeed": installed("deepspeed"),
    }


def installed(package: str) -> str:
    """The version of an installed package, or "none"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def code_digest(folder: Path = PACKAGE) -> str:
    """The first digits of the sha256 of all Python files below `folder`: hosts may hold copies that differ."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
