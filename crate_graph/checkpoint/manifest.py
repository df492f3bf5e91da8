"""The manifest: what a checkpoint consists of, with the checksum of each file and of itself. It is written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from crate_graph.errors import UserError

FORMAT = "crate-graph/1"
MANIFEST = "manifest.json"
_CONTENTS = {"step": int, "files": dict, "model": dict, "dataset": dict, "metrics": dict}
_REMEDY = "use another checkpoint, or remove this one to go on from the one before it"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def describe(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The `files` entry of a manifest."""
    return {name: {"bytes": len(data), "sha256": digest(data)} for name, data in files.items()}


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the sha256 of all that it says; a seal that it has is made anew."""
    said = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))  # as it is read
    return {**said, "sha256": digest(json.dumps(said, sort_keys=True).encode())}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `folder`.

    Raises:
        UserError: there is none, it is of another format, or it was changed after it was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not a checkpoint (no {MANIFEST}); name a folder like RUN/checkpoints/step-00000100"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise UserError(f"{path}: damaged (it is not the manifest of a checkpoint); {_REMEDY}")
    if manifest["format"] != FORMAT:
        raise UserError(f"{path}: not of the format {FORMAT}: written by another version, or damaged; {_REMEDY}")
    wrong = [key for key, kind in _CONTENTS.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise UserError(f"{path}: damaged ({', '.join(wrong)} missing or of another type); {_REMEDY}")
    if manifest.get("sha256", sealed := seal(manifest)["sha256"]) != sealed:  # the first versions wrote none
        raise UserError(f"{path}: damaged (its sha256 is not that of what it says); {_REMEDY}")
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
        if (size := path.stat().st_size) != expected["bytes"]:  # also of a device, which would be read without end
            raise UserError(f"{path}: {size} bytes instead of {expected['bytes']}; {_REMEDY}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if digest(data) != expected["sha256"]:
        raise UserError(f"{path}: damaged (its sha256 is not the one in {MANIFEST}); {_REMEDY}")
    return data


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint; returns its manifest."""
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        read_verified(folder, manifest, name)
    return manifest


def task_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `describe_task` said of the task; manifests from before there was a second one say nothing."""
    return manifest.get("task", {"kind": "classification"})
