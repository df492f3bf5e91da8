"""From run folders to the rows of a table: which runs are one model, what it is called, and what can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checkpoint_measures import Asked, LastLayer, Memory

from crate_graph.checkpoint.store import Entry
from crate_graph.config.schema import Recipe
from crate_graph.errors import UserError
from crate_graph.tasks.build import color_channels, describe_task
from crate_graph.train.trained import TrainedRun, open_run


@dataclass
class Sample:
    """One run of a model, and the checkpoint that speaks for it."""

    run: TrainedRun
    checkpoint: Entry
    asked: Asked
    layer: LastLayer | None = None  # if it was asked for


@dataclass
class Row:
    """A model: runs that differ by their seed alone."""

    title: str | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        return self.samples[0].run.recipe

    @property
    def dataset(self) -> str:
        return _dataset(self.samples[0])

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W) of an image whose FLOPs are counted: as evaluated; of restoration a training patch."""
        recipe = self.recipe
        if recipe.task.kind == "restoration":
            return color_channels(recipe), recipe.data.patch, recipe.data.patch
        size = recipe.data.eval_transform.size
        return len(self.samples[0].checkpoint.manifest["dataset"]["mean"]), size, size


def read_rows(
    names: Sequence[str], memory: Memory, *, checkpoint: Literal["best", "last"], unfinished: bool
) -> list[Row]:
    """Runs by their recipes, in the order in which they are named, each as RUN or TITLE=RUN.

    Raises:
        UserError: a folder that is no run, or named twice; a second run of the same recipe and seed; two titles of one
            recipe; runs that are not of one task on one data set.
    """
    rows: dict[str, Row] = {}
    places: set[Path] = set()
    for name in names:
        title, path = _titled(name)
        if path.resolve() in places:
            raise UserError(f"{path}: named twice; leave one out")
        places.add(path.resolve())
        run = open_run(path, unfinished=unfinished)
        row = rows.setdefault(run.recipe.model_copy(update={"seed": 0}).model_dump_json(), Row(title))
        twin = next((each.run for each in row.samples if each.run.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise UserError(f"{path}: the same recipe and seed as {twin.path}, so no second sample; leave one out")
        if title is not None and row.title not in (None, title):
            raise UserError(f"{path}: {title!r} and {row.title!r} are of one recipe; give both the same title")
        row.title = row.title or title
        entry = run.checkpoint(checkpoint)
        row.samples.append(Sample(run, entry, Asked(str(path), run.recipe, entry, memory)))
    _check_comparable(list(rows.values()))
    _tell_apart(list(rows.values()))
    return list(rows.values())


def check_same_data(rows: list[Row]) -> None:
    """Raise UserError where evaluation sets differ by their shards: two data sets of one name need not share them."""
    first, *others = [sample for row in rows for sample in row.samples]
    for sample in others:
        if sample.asked.data != first.asked.data:
            raise UserError(
                f"{sample.run.path}: other shards of the split {sample.run.recipe.data.eval_split} than "
                f"{first.run.path}; compare runs on the same data"
            )


def _titled(text: str) -> tuple[str | None, Path]:
    title, equals, name = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    return title, Path(name)


def _check_comparable(rows: list[Row]) -> None:
    """Raise UserError where numbers would not be of the same question."""
    samples = [sample for row in rows for sample in row.samples]
    first = _question(samples[0])
    for sample in samples[1:]:
        asked = _question(sample)
        for key in first:
            if asked.get(key) != first[key]:
                raise UserError(
                    f"{sample.run.path}: {key} {asked.get(key)}, and {samples[0].run.path} has {first[key]}; compare "
                    f"runs of one task on one data set, and others in a table of their own"
                )


def _question(sample: Sample) -> dict[str, Any]:
    recipe = sample.run.recipe
    task = describe_task(recipe)
    return {"task": task.pop("kind"), "data set": _dataset(sample), "split": recipe.data.eval_split, **task}


def _dataset(sample: Sample) -> str:
    return sample.checkpoint.manifest["dataset"]["name"]


def _tell_apart(rows: list[Row]) -> None:
    """A title for each: the one given or the recipe's name, and what differs, where two rows have the same."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        row.title = row.title or row.recipe.name
        alike.setdefault(row.title, []).append(row)
    for title, group in alike.items():
        settings = [_flat(row.recipe.model_dump(exclude={"seed"})) for row in group]
        keys = dict.fromkeys(key for each in settings for key in each)
        differing = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
        for row, values in zip(group, settings, strict=True):
            if differing:
                row.title = f"{title} ({', '.join(f'{key}={values.get(key)}' for key in differing)})"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
