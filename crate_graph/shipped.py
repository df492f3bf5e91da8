"""Where the files that ship with the package are: data set descriptions and recipes."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped_folder(kind: str) -> Path:
    """The folder of shipped `datasets` or `recipes`: inside an installed wheel, or at the top of the repository.

    Raises:
        FileNotFoundError: neither is there, so the installation is broken.
    """
    candidates = (PACKAGE / "_shipped" / kind, PACKAGE.parent / kind)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no shipped {kind}: looked in {candidates[0]} and {candidates[1]}")
