"""From a checkpoint to a folder of shipped weights: model.safetensors, model.json, and a card for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from crate_graph.checkpoint.store import resolve
from crate_graph.config.load import dump_recipe, load_recipe
from crate_graph.config.schema import Cache, Recipe, Remote
from crate_graph.errors import UserError
from crate_graph.export.parity import compare_estimates
from crate_graph.export.restorer import Restorer, read_restorer, words_to_try
from crate_graph.export.staging import staged
from crate_graph.tasks.build import describe
from crate_graph.tasks.restoration import estimate
from crate_graph.weights.names import CARD, DESCRIPTION, SHIPPED, WEIGHTS, load_restorer

LARGEST = 2_000_000  # bytes of the weights, so that the package stays small
_NAME = re.compile(r"[a-z][a-z0-9_]*")

_PURPOSE = {
    "bayer": "Demosaicks: restores colour pictures from a Bayer mosaic ({problem}).",
    "decimate": "Interpolates: doubles the sides of a picture of which the pixels [::2, ::2] are known.",
    "random": "Fills in missing pixels ({problem}: the share of pixels that are known).",
    "none": "Removes Gaussian noise.",
}
_CHANNELS = {"rgb": "R, G and B", "y": "Y of Y'CbCr (BT.601, studio range); chroma is interpolated"}
_CARD = """\
# {name}

{purpose}

    crate-graph restore {name} photo.png {trial} --compare --output out

| | |
|---|---|
| Architecture | `{restorer.architecture}`, {parameters:,} parameters, float32 |
| Restores | {channels} |
| Noise | {noise} |
| Trained on | {data} |
| Recipe | {recipe.name}, seed {recipe.seed}, step {restorer.step:,}; in full below |
| Command | `{command}` |
| Licence of the weights | {licence} |

## Measured

| | |
|---|---|
{metrics}

## Recipe

```yaml
{yaml}```
"""


def ship_weights(
    checkpoint: str | Path,
    name: str,
    *,
    command: str,
    data: str,
    metrics: Mapping[str, str],
    licence: str = "Apache-2.0",
    folder: Path = SHIPPED,
) -> Path:
    """Write `folder`/`name` from a restoration checkpoint: its moving average, where one is kept, as float32.

    The folder appears when what was read back computes exactly the same.

    Args:
        command: that trained it.
        data: what it was trained on, and the terms of that.
        metrics: what was measured -> the result; the recipe's own validation is added.

    Raises:
        UserError: no restoration checkpoint, a name that is none, a folder that exists, weights larger than `LARGEST`.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r}: no name for weights; use small letters, digits and _, for instance demosaic_fast")
    target = folder / name
    if target.exists():
        raise UserError(f"{target}: exists already; remove it first, or choose another name")
    restorer = read_restorer(checkpoint)
    recipe = load_recipe(resolve(checkpoint) / "recipe.yaml")
    with staged(target) as path:
        path.mkdir()
        save_file(restorer.weights(), path / WEIGHTS)
        size = (path / WEIGHTS).stat().st_size
        if size > LARGEST:
            raise UserError(f"{checkpoint}: {size / 1e6:.1f} MB of weights; at most {LARGEST / 1e6:.0f} MB are shipped")
        (path / DESCRIPTION).write_text(restorer.describe() + "\n", encoding="utf-8")
        card = _card(name, restorer, recipe, command=command, data=data, metrics=metrics, licence=licence)
        (path / CARD).write_text(card, encoding="utf-8")
        again = load_restorer(path).model
        compare_estimates(restorer, lambda *observation: estimate(again, *observation), 0.0, name)
    return target


def _card(name: str, restorer: Restorer, recipe: Recipe, *, metrics: Mapping[str, str], **said: str) -> str:
    problem = describe(restorer.degradation)
    validation = {f"validation, {key}": f"{value:.6g}" for key, value in restorer.metrics.items()}
    return _CARD.format(
        name=name,
        restorer=restorer,
        recipe=recipe,
        purpose=_PURPOSE[restorer.degradation.kind].format(problem=problem),
        trial=" ".join(words_to_try(restorer.degradation)),
        parameters=sum(parameter.numel() for parameter in restorer.model.parameters()),
        channels=_CHANNELS[restorer.color],
        noise=_noise(restorer),
        metrics="\n".join(f"| {what} | {result} |" for what, result in {**metrics, **validation}.items()),
        yaml=_without_places(recipe),
        **said,
    )


def _noise(restorer: Restorer) -> str:
    sigma: Any = restorer.degradation.sigma
    told = "; the network is told its level" if getattr(restorer.model, "noise_aware", False) else ""
    if not sigma:
        return f"none in training{told}"
    level = f"{sigma[0]:g} to {sigma[1]:g}" if isinstance(sigma, tuple) else f"{sigma:g}"
    return f"Gaussian in training, sigma {level} of 255{told}"


def _without_places(recipe: Recipe) -> str:
    """The recipe as YAML, without the folders of the machine that trained it."""
    places = {"root": None, "cache": Cache(), "remote": Remote()}
    data = recipe.data.model_copy(update={"dataset": Path(recipe.data.dataset).name, **places})
    init_from = recipe.model.init_from and Path(recipe.model.init_from).name
    model = recipe.model.model_copy(update={"init_from": init_from})
    return dump_recipe(recipe.model_copy(update={"data": data, "model": model}))
