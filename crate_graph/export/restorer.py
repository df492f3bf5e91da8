"""A trained restoration network and the description that travels with it, in every file that we write of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crate_graph.checkpoint import load_model
from crate_graph.checkpoint.described import check_finite, checksum
from crate_graph.checkpoint.manifest import read_manifest, read_verified, task_of
from crate_graph.checkpoint.model import arguments_of, check_fit, shapes
from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import load_recipe
from crate_graph.config.schema import Degradation
from crate_graph.errors import UserError
from crate_graph.models import create_model
from crate_graph.tasks.build import describe

FORMAT = "crate-graph-restorer/2"


@dataclass(frozen=True)
class Restorer:
    """A restoration network in eval mode, and what it was trained for.

    `model_args` are the keyword arguments that rebuild the architecture, `in_chans` among them.
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, Any]
    degradation: Degradation
    color: Literal["rgb", "y"]
    recipe: str
    dataset: str
    step: int
    metrics: dict[str, float]

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor, each with memory of its own, as safetensors asks."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.model.state_dict().items()}

    def describe(self) -> str:
        """All but the weights, as JSON, with a checksum of both; `rebuild` reads it."""
        described = {
            "format": FORMAT,
            "architecture": self.architecture,
            "model_args": self.model_args,
            "degradation": self.degradation.model_dump(),
            "color": self.color,
            "recipe": self.recipe,
            "dataset": self.dataset,
            "step": self.step,
            "metrics": self.metrics,
        }
        return json.dumps({**described, "sha256": checksum(described, self.weights())}, indent=1)


def rebuild(described: str, weights: dict[str, Tensor], where: Path) -> Restorer:
    """The restorer that `Restorer.describe` described. `where` names the file in an error.

    Raises:
        UserError: written by something else, weights of another architecture, or a description or weights that are
            not those that were written.
    """
    remedy = "use a file that crate-graph export --format safetensors wrote of a restoration checkpoint"
    try:
        fields = json.loads(described)
        if fields["format"] != FORMAT:
            raise ValueError(f"not of the format {FORMAT}")
        written = fields.pop("sha256")
        found = checksum(fields, weights)
        del fields["format"]
        fields["degradation"] = Degradation.model_validate(fields["degradation"])
        with torch.device("meta"):  # a description may ask for any size, and weights must fit before memory is taken
            expected = shapes(create_model(fields["architecture"], **fields["model_args"]))
        check_fit(where, fields["architecture"], expected, weights)
        check_finite(where, weights)
        if found != written:
            raise ValueError("it or the weights were changed after they were written")
        model = create_model(fields["architecture"], **fields["model_args"])
        restorer = Restorer(model=model, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: does not describe a restoration network ({reason}); {remedy}") from None
    model.load_state_dict(weights)
    model.eval()
    return restorer


def read_restorer(path: str | Path) -> Restorer:
    """The model of a restoration checkpoint (its moving average, where one is kept), on the CPU.

    Raises:
        UserError: no whole checkpoint, or one of another task.
    """
    folder = resolve(path)
    task = task_of(read_manifest(folder))
    if task["kind"] != "restoration":
        raise UserError(f"{folder}: was trained for {task['kind']}; name a checkpoint of a restoration recipe")
    model, manifest = load_model(folder)
    read_verified(folder, manifest, "recipe.yaml")
    return Restorer(
        model=model.cpu(),
        architecture=manifest["model"]["name"],
        model_args=arguments_of(manifest),
        degradation=Degradation.model_validate(task["degradation"]),
        color=task["color"],
        recipe=load_recipe(folder / "recipe.yaml").name,
        dataset=manifest["dataset"]["name"],
        step=manifest["step"],
        metrics=manifest["metrics"],
    )


def words_to_try(degradation: Degradation) -> list[str]:
    """Of `crate-graph restore`: those that try such a network on a full picture."""
    noise = degradation.sigma if isinstance(degradation.sigma, float) else sum(degradation.sigma) / 2
    words = ["--degrade", describe(degradation).replace(":any", ":RGGB")]
    return [*words, "--noise", f"{noise:g}"] if noise else words
