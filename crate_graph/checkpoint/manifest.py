"""The manifest: what a checkpoint consists of, with the checksum of each file and of itself. It is written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from crate_graph.errors import UserError

FORMAT = "crate-graph/1"
MANIFEST = "manifest.json"
_REMEDY = "use another checkpoint, or remove this one to go on from the one before it"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def describe(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The `files` entry of a manifest."""
    return {name: {"bytes": len(data), "sha256": digest(data)} for name, data in files.items()}


def seal(manifest: dict[str, Any]) -> bytes:
    """A manifest as it is written: with the checksum of its own content."""
    return json.dumps({**manifest, "sha256": _own_digest(manifest)}, indent=1).encode()


def _own_digest(manifest: dict[str, Any]) -> str:
    return digest(json.dumps(manifest, sort_keys=True).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `folder`.

    Raises:
        UserError: there is none, it is of another format, or a bit of it has flipped.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not a checkpoint (no {MANIFEST}); name a folder like RUN/checkpoints/step-00000100"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not of the format {FORMAT}; it was written by another version")
    if manifest.pop("sha256", None) not in (None, _own_digest(manifest)):  # before there was one, there is none
        raise UserError(f"{path}: damaged (its sha256 is not the one in it); {_REMEDY}")
    absent = [key for key in ("step", "files", "model", "dataset", "metrics") if key not in manifest]
    if absent:
        raise UserError(f"{path}: damaged ({', '.join(absent)} missing); {_REMEDY}")
    return manifest


def read_verified(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """Contents of one file of a checkpoint, checked against the manifest.

    Raises:
        UserError: the file is missing, shorter or longer than it was, or a bit of it has flipped.
    """
    path, expected = folder / name, manifest["files"].get(name)
    if expected is None:
        raise UserError(f"{folder}: holds no {name}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if len(data) != expected["bytes"]:
        raise UserError(f"{path}: {len(data)} bytes instead of {expected['bytes']}; {_REMEDY}")
    if digest(data) != expected["sha256"]:
        raise UserError(f"{path}: damaged (its sha256 is not the one in {MANIFEST}); {_REMEDY}")
    return data


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint; returns its manifest."""
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        read_verified(folder, manifest, name)
    return manifest
