"""Saving and restoring the whole state of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from crate_graph.checkpoint.contents import Contents, read_contents
from crate_graph.checkpoint.model import check_fit
from crate_graph.checkpoint.store import CheckpointStore
from crate_graph.checkpoint.writer import BackgroundWriter
from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset
from crate_graph.engine.base import Engine
from crate_graph.engine.loss_scale import LossScale
from crate_graph.errors import UserError
from crate_graph.resilience.guard import FiniteGuard
from crate_graph.tasks.build import describe_task, model_arguments
from crate_graph.train.ema import Ema


class Saver:
    """Collects a run's state on all ranks; the main one writes it in the background."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        store: CheckpointStore,
        *,
        engine: Engine,
        ema: Ema | None,
        loss_scale: LossScale,
        guard: FiniteGuard,
        stream: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        trained: int,
    ):
        self.recipe, self.dataset, self.store = recipe, dataset, store
        self.engine, self.ema, self.loss_scale, self.guard = engine, ema, loss_scale, guard
        self.stream, self.shapes, self.trained = stream, shapes, trained  # parameters that learn: elements
        self.writer = BackgroundWriter(store.folder)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def save(self, step: int, damaged: int, metrics: dict[str, float]) -> None:
        """Collective. Returns when the copy is taken; what goes wrong later is raised by `writer.wait`."""
        portable = self.engine.state()
        ema = self.ema.gather() if self.ema is not None else None
        state = {
            "step": step,
            "damaged": damaged,
            "loss_scale": self.loss_scale.state_dict(),
            "guard": self.guard.state_dict(),
            "stream": self.stream,
            "random_numbers": "keyed by (seed, step, rank); the seed is the recipe's",
        }
        if not self.engine.ranks.is_main:
            return
        contents = Contents(portable, ema, state, dump_recipe(self.recipe))
        facts = self._facts(metrics)

        def write() -> None:
            self.store.write(step, contents.to_files(), facts)
            self.store.prune(self.recipe.checkpoint, self.recipe.evaluation.metric)

        self.writer.start(write)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Load a checkpoint into engine, EMA, loss scale and guard; returns its `state`.

        Raises:
            UserError: it is damaged, of another architecture, or of a stream that this recipe would not continue.
        """
        contents = read_contents(folder)
        check_fit(folder, self.recipe.model.name, self.shapes, contents.portable.model)
        check_stream(folder, contents.state["stream"], self.stream)
        if contents.portable.moments.keys() != set(self.engine.optimizer.moments):
            raise UserError(
                f"{folder}: was trained with another optimizer than optimizer.name={self.recipe.optimizer.name}; set "
                f"it back, or start a new run with model.init_from={folder}"
            )
        self.engine.load_state(contents.portable)
        if self.ema is not None:
            self.ema.load(contents.ema if contents.ema is not None else contents.portable.model)
        self.loss_scale.load_state_dict(contents.state["loss_scale"])
        self.guard.load_state_dict(contents.state["guard"])
        return contents.state

    def _facts(self, metrics: dict[str, float]) -> dict[str, Any]:
        data = self.dataset
        arguments = model_arguments(self.recipe, data)
        num_classes = arguments.pop("num_classes", None)  # restoration has none
        return {
            "task": describe_task(self.recipe),
            "model": {"name": self.recipe.model.name, "kwargs": arguments, "num_classes": num_classes},
            "dataset": {
                "name": data.name,
                "classes": list(data.classes),
                "mean": list(data.mean),
                "std": list(data.std),
            },
            "metrics": metrics,
        }


def check_stream(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run must continue the same sequence of global batches, and learn the same from them.

    Raises:
        UserError: naming the first setting that differs, with both values.
    """
    for key, value in now.items():
        if key in before and before[key] != value:
            raise UserError(
                f"{folder}: was trained with {key}={before[key]}, the recipe says {value}: the sequence of samples, "
                f"or what is learned from them, would not go on; set it back, or start a new run with "
                f"model.init_from={folder}"
            )
