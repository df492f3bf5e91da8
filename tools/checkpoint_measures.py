"""What a checkpoint is asked on its evaluation set beyond its metrics, remembered in a file: it takes a while."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crate_graph.analysis.layers import undefined, unmeasured
from crate_graph.analysis.probe import last_layer, probe
from crate_graph.analysis.subject import open_subject as open_analysed
from crate_graph.checkpoint.manifest import seal
from crate_graph.checkpoint.store import Entry
from crate_graph.config.schema import Recipe
from crate_graph.data import open_dataset
from crate_graph.data.index import sha256_of_shards
from crate_graph.data.remote.cache import ShardCache
from crate_graph.errors import UserError
from crate_graph.evaluation.run import judge
from crate_graph.evaluation.shifts import MEASURE, Shift
from crate_graph.evaluation.subjects import Subject, open_subject
from crate_graph.whole_files import write_whole

FORMAT = 1  # of what is remembered: other numbers for the same question need another


@dataclass
class LastLayer:
    """The white-box measures of the last layer by name, and why others are missing."""

    means: dict[str, float]
    units: dict[str, str]
    reasons: dict[str, str]  # by the name of the measure
    why_none: str | None = None


class Memory:
    """Answers by question, in a JSON file that is written after each; without a file they are forgotten.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._answers: dict[str, Any] = {}
        if file is not None and file.exists():
            try:
                self._answers = dict(json.loads(file.read_text()))
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise UserError(f"{file}: cannot be read ({error}); remove it, and it is made again") from None

    def ask(self, question: dict[str, Any], find: Callable[[], Any]) -> Any:
        digest = hashlib.sha256(json.dumps({"format": FORMAT, **question}, sort_keys=True).encode()).hexdigest()
        if digest not in self._answers:
            self._answers[digest] = {"question": question, "answer": find()}
            self._write()
        return self._answers[digest]["answer"]

    def _write(self) -> None:
        if self._file is not None:
            write_output(self._file, json.dumps(self._answers, indent=1) + "\n")


def write_output(file: Path, content: str | bytes) -> None:
    """Whole or not at all, in a folder that is made where it does not exist.

    Raises:
        UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error}); choose another place") from None


class Asked:
    """One checkpoint; it is loaded when the memory has no answer."""

    def __init__(self, name: str, recipe: Recipe, checkpoint: Entry, memory: Memory):
        self._name, self._recipe, self._checkpoint, self._memory = name, recipe, checkpoint, memory

    def last_layer(self, samples: int) -> LastLayer:
        def find() -> dict[str, Any]:
            self._say(f"last layer, {samples} samples")
            return asdict(self._look(samples))

        return LastLayer(**self._memory.ask({**self._subject, "last_layer": samples}, find))

    def under(self, shift: Shift) -> float:
        """What the task is judged by, see `shifts.MEASURE`."""
        measure = MEASURE[self._recipe.task.kind]

        def find() -> float:
            self._say(shift.name + ("" if shift.severity is None else f", severity {shift.severity}"))
            return judge(self._judged, shift=shift)[measure]

        return self._memory.ask({**self._subject, "measure": measure, "shift": asdict(shift)}, find)

    @functools.cached_property
    def data(self) -> str:
        """The sha256 of the shards that it is asked about."""
        data = self._recipe.data
        dataset = open_dataset(data.dataset, data.root, ShardCache(data.cache, data.remote))
        return sha256_of_shards(dataset.split(data.eval_split).shards)

    @functools.cached_property
    def _subject(self) -> dict[str, str]:
        manifest = self._checkpoint.manifest
        return {"checkpoint": manifest.get("sha256") or seal(manifest)["sha256"], "data": self.data}

    @functools.cached_property
    def _judged(self) -> Subject:
        data = self._recipe.data
        root = [] if data.root is None else [f"data.root={json.dumps(data.root)}"]
        return open_subject(str(self._checkpoint.path), data.dataset, root)

    def _look(self, samples: int) -> LastLayer:
        subject = open_analysed(str(self._checkpoint.path))
        why = unmeasured(subject.model)
        if why is not None:
            return LastLayer({}, {}, {}, why)
        found = {name: m for name, m in last_layer(probe(subject, samples)).items() if math.isfinite(m.mean)}
        reasons = {name: why for names, why in undefined(subject.model).items() for name in names.split(", ")}
        return LastLayer({n: m.mean for n, m in found.items()}, {n: m.unit for n, m in found.items()}, reasons)

    def _say(self, what: str) -> None:
        print(f"{self._name}: {what}", file=sys.stderr, flush=True)
