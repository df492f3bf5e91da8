"""metrics.jsonl and TensorBoard: what is written down while a run goes on, and how a resumed run takes it up."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from crate_graph.whole_files import write_whole


class MetricsLog:
    """Appends to metrics.jsonl, one flushed line per record, and to TensorBoard.

    A run that goes on from step `resumed_at` forgets what was written after that step: the records of an interrupted
    run and of an unbroken one are the same.
    """

    def __init__(self, path: Path, tensorboard: Path | None, resumed_at: int):
        _keep_until(path, resumed_at)
        self._path, self._file = path, path.open("a")
        self._board = SummaryWriter(str(tensorboard), purge_step=resumed_at + 1) if tensorboard else None

    def write(self, step: int, record: dict[str, Any]) -> None:
        """A number that is not finite is written as null: JSON has no NaN.

        Raises:
            OSError: with the name of the file; the disk is full, say.
        """
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(key, value, step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """To TensorBoard alone."""
        if self._board is not None:
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def images(self, tag: str, images: Tensor, step: int) -> None:
        """(N, C, H, W) in [0, 1]."""
        if self._board is not None:
            self._board.add_images(tag, images, step)

    def histogram(self, tag: str, values: list[float], step: int) -> None:
        if self._board is not None and values:
            self._board.add_histogram(tag, np.array(values), step)

    def close(self) -> None:
        for file in (self._file, self._board):
            with suppress(OSError):  # records are flushed: what fails here has failed, and been told, before
                if file is not None:
                    file.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, all of them for 0, and a last line that a kill cut off."""
    if not path.exists():
        return
    if step == 0:
        path.unlink()
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            written_at = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        if written_at <= step:
            kept.append(line + "\n")
    write_whole(path, "".join(kept))
