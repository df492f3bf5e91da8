"""Paths as a user writes them."""

from __future__ import annotations

from pathlib import Path

from crate_graph.errors import UserError


def expanded(path: str | Path) -> Path:
    """With `~` and `~USER` as a shell has them. Raises UserError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: begins with ~ and no user of that name; write it out") from None
