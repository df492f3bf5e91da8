"""What is exported: a checkpoint's model and all that a stranger must know to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from crate_graph.checkpoint import load_model
from crate_graph.checkpoint.manifest import read_verified
from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import load_recipe
from crate_graph.config.schema import EvalTransform

_TRAINING_ONLY = ("drop_path_rate", "drop_block_rate", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Source:
    """A trained classifier and its description.

    `model_args` are the keyword arguments that, with the number of classes, rebuild the architecture.
    `mean` and `std` are per channel, for pixels in [0, 1].
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: EvalTransform
    recipe: str
    dataset: str
    step: int
    metrics: dict[str, float]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return len(self.mean), self.transform.size, self.transform.size

    @property
    def is_timms_own(self) -> bool:
        """Whether timm alone, without crate_graph, can build the architecture."""
        return timm.models.model_entrypoint(self.architecture).__module__.startswith("timm.")

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor, each with memory of its own, as safetensors asks."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.model.state_dict().items()}


def read_checkpoint(path: str | Path) -> Source:
    """The model of a checkpoint (its moving average, where one is kept) with the description in its manifest.

    Raises UserError for what is not a whole checkpoint.
    """
    folder = resolve(path)
    model, manifest = load_model(folder)
    read_verified(folder, manifest, "recipe.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    described, dataset = manifest["model"], manifest["dataset"]
    return Source(
        model=model.cpu(),
        architecture=described["name"].partition(".")[0],  # timm: architecture.tag, the tag naming published weights
        model_args=_without_training_arguments(described["kwargs"]),
        num_classes=described["num_classes"],
        classes=_class_names(dataset["classes"], described["num_classes"]),
        mean=tuple(dataset["mean"]),
        std=tuple(dataset["std"]),
        transform=recipe.data.eval_transform,
        recipe=recipe.name,
        dataset=dataset["name"],
        step=manifest["step"],
        metrics=manifest["metrics"],
    )


def _without_training_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without drop rates and `pretrained`: whoever trains the export on chooses these anew."""
    return {key: value for key, value in kwargs.items() if not key.endswith("drop_rate") and key not in _TRAINING_ONLY}


def _class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """A name per class; numbers where the data set names none."""
    if len(names) != num_classes:
        return tuple(str(number) for number in range(num_classes))
    return tuple(str(name) for name in names)
