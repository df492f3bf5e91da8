"""A photograph to restore, and the command that restores it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_graph.cli import main


@pytest.fixture(scope="session")
def scene() -> np.ndarray:
    """Coloured waves with an edge, of odd sides: (41, 57, 3) uint8."""
    y, x = np.mgrid[:41, :57].astype(np.float64)
    waves = [np.sin(x / 5 + phase) * np.cos(y / 7 - phase) for phase in (0.0, 0.6, 1.3)]
    picture = 0.5 + 0.35 * np.stack(waves, axis=2)
    picture[(x > 28) & (y > 13)] *= 0.4
    return np.rint(255 * picture).astype(np.uint8)


@pytest.fixture
def photo(tmp_path, scene) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(scene).save(path)
    return path


@pytest.fixture
def restore(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs `crate-graph restore`: words -> (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["restore", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(restore, tmp_path) -> Callable[..., str]:
    """Runs the command, which must refuse in one line and write nothing; returns the line."""

    def run(*words: object) -> str:
        code, out, err = restore(*words, "--output", tmp_path / "refused")
        assert (code, out) == (2, ""), err
        assert not (tmp_path / "refused").exists()
        (line,) = err.splitlines()
        return line

    return run
