"""What an evaluation changes about its inputs, to ask how a model bears what it was not trained for.

    classification          each of `corruptions.CORRUPTIONS` at a severity from 1 to 5
    restoration             noise: Gaussian, of NOISE[severity] of 255, in the place of the noise trained with
                            mask_shift: a mosaic or a grid one column to the left; of random pixels, half as many known
    masked autoencoding     mask_shift: half of what was visible is hidden, too

The last two have no severity. Where every pixel is known, there is no mask to shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crate_graph.config.schema import Degradation, Recipe
from crate_graph.data.augment import Key
from crate_graph.data.degrade import Observed, observe
from crate_graph.evaluation.corruptions import CORRUPTIONS, Corruption

NOISE = {1: 5.0, 2: 10.0, 3: 20.0, 4: 30.0, 5: 50.0}  # of 255; from 10 on those of arXiv 2406.04090
MEASURE = {"classification": "top1", "restoration": "psnr", "masked_autoencoding": "psnr"}  # that a shift is judged by


@dataclass(frozen=True)
class Shift:
    """One change; `name` is that of the table above."""

    name: str
    severity: int | None = None
    corruption: Corruption | None = None
    sigma: float | None = None
    keep: float | None = None  # share of known pixels
    moved: bool = False  # the mask, by one column
    mask_ratio: float | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe that evaluates under this shift, as far as a recipe can say it."""
        data = {"sigma": self.sigma, "keep": self.keep}
        recipe = _changed(recipe, ("data", "degradation"), {k: v for k, v in data.items() if v is not None})
        return recipe if self.mask_ratio is None else _changed(recipe, ("task",), {"mask_ratio": self.mask_ratio})


def shifts_for(recipe: Recipe, severities: Sequence[int] = (3,)) -> list[Shift]:
    """All that a model of this recipe is asked, by the kind of its task.

    Raises:
        UserError: a severity that is not from 1 to 5.
    """
    corruptions = [Corruption(name, severity) for name in CORRUPTIONS for severity in severities]
    if recipe.task.kind == "classification":
        return [Shift(each.name, each.severity, corruption=each) for each in corruptions]
    if recipe.task.kind == "masked_autoencoding":
        return [Shift("mask_shift", mask_ratio=(1 + recipe.task.mask_ratio) / 2)]
    degradation = recipe.data.degradation
    shifts = [Shift("noise", severity, sigma=NOISE[severity]) for severity in severities]
    if degradation.kind == "random":
        shifts.append(Shift("mask_shift", keep=degradation.keep / 2))
    elif degradation.kind != "none":
        shifts.append(Shift("mask_shift", moved=True))
    return shifts


def observe_moved(clean: np.ndarray, degradation: Degradation, key: Key) -> Observed:
    """As `degrade.observe`, with the mask one column to the left: RGGB becomes GRBG, [::2, ::2] becomes [::2, 1::2]."""
    wider = np.concatenate((clean[:, :1], clean), axis=1)  # (H, W + 1, C)
    observed, mask, sigma = observe(wider, degradation, key)
    return Observed(observed[:, 1:], mask[:, 1:], sigma)


def _changed(section: Any, path: tuple[str, ...], values: dict[str, Any]) -> Any:
    if not values:
        return section
    if path:
        values = {path[0]: _changed(getattr(section, path[0]), path[1:], values)}
    return section.model_copy(update=values)
