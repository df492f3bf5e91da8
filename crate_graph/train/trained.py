"""A run folder as others read it: what was trained, how fast, and how good it became."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crate_graph.checkpoint.store import CheckpointStore, Entry, best_entries
from crate_graph.config.load import load_recipe
from crate_graph.config.schema import Recipe
from crate_graph.errors import UserError
from crate_graph.paths import expanded
from crate_graph.train.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """What a run left behind."""

    path: Path
    recipe: Recipe
    finished: bool
    environment: dict[str, Any]
    records: list[dict[str, Any]]  # of metrics.jsonl
    checkpoints: list[Entry]  # in the order of their steps; one at least

    def checkpoint(self, which: Literal["best", "last"]) -> Entry:
        """The best by `evaluation.metric` of those that are kept, or the last one.

        Raises:
            UserError: none was evaluated.
        """
        if which == "last":
            return self.checkpoints[-1]
        best = best_entries(self.checkpoints, self.recipe.evaluation.metric)
        if not best:
            raise UserError(
                f"{self.path}: no checkpoint with a {self.recipe.evaluation.metric}, so none is the best; take the "
                f"last one, or go on with the run until it is evaluated"
            )
        return best[0]

    @property
    def images_per_second(self) -> float | None:
        """Training images per second: the median over the logged intervals, the first left out where there are more.

        None where nothing was logged.
        """
        rates = [record["images_per_second"] for record in self.records if record.get("images_per_second")]
        return statistics.median(rates[1:] or rates) if rates else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most that the main process logged; see `telemetry.peak_memory_bytes` for what it counts."""
        return max(
            (record["peak_memory_bytes"] for record in self.records if record.get("peak_memory_bytes")), default=None
        )


def open_run(path: str | Path, *, unfinished: bool = False) -> TrainedRun:
    """Read the folder of a run, which may be going on.

    Args:
        unfinished: whether one that has not reached its end is taken, too.

    Raises:
        UserError: no run folder, one without a checkpoint, a run that has not finished, a file that cannot be read.
    """
    folder = RunFolder(expanded(path))
    if not folder.recipe.is_file() or not folder.metrics.is_file():
        absent = folder.metrics.name if folder.recipe.is_file() else folder.recipe.name
        raise UserError(
            f"{path}: no run folder ({absent} missing); name what crate-graph train wrote, as runs/quickstart"
        )
    recipe = load_recipe(folder.recipe)
    finished = folder.summary.is_file() and bool(_read_json(folder.summary).get("finished"))
    checkpoints = CheckpointStore(folder.checkpoints).entries()
    if not finished and not unfinished:
        reached = f"step {checkpoints[-1].step}" if checkpoints else "no checkpoint yet"
        raise UserError(
            f"{path}: the run has not finished ({reached}); go on with: crate-graph train {folder.recipe} --run-dir "
            f"{path}, or take it as it is with --unfinished"
        )
    if not checkpoints:
        raise UserError(f"{folder.checkpoints}: no checkpoint that can be read; train again, or name another run")
    environment = _read_json(folder.environment) if folder.environment.is_file() else {}
    return TrainedRun(folder.path, recipe, finished, environment, _read_records(folder.metrics), checkpoints)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name another run") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no mapping; name another run")
    return value


def _read_records(path: Path) -> list[dict[str, Any]]:
    """All but what a kill cut off at the end."""
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(record, dict):
            records.append(record)
    return records
