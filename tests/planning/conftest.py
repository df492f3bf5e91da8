"""Recipes of each kind of model, small enough to train a few steps in a test."""

from __future__ import annotations

from typing import Any

import pytest

from crate_graph.config.load import make_recipe
from crate_graph.config.schema import Recipe

FASHION = {
    "dataset": "fashion_mnist",
    "slots": 4,
    "workers": 0,
    "train_transform": {"size": 28, "crop": "none"},
    "eval_transform": {"size": 28, "resize": None},
}
VIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 3}
VALUES: dict[str, dict[str, Any]] = {
    "crate": {"model": {"name": "crate_small_patch16_224", "kwargs": VIT}, "data": FASHION, "ema": {"decay": 0.99}},
    "vit": {"model": {"name": "vit_small_patch16_224", "kwargs": VIT}, "data": FASHION, "optimizer": {"name": "lion"}},
    "ugtv_fast": {
        "model": {"name": "ugtv_fast", "kwargs": {"dim": 16, "convs": 1, "depth": 1, "layers": 1}},
        "data": {
            "dataset": "photo_crops",
            "slots": 4,
            "workers": 0,
            "patch": 32,
            "degradation": {"kind": "bayer", "phase": "RGGB"},
        },
        "task": {"kind": "restoration"},
    },
}
MODELS = tuple(VALUES)


def recipe_of(model: str, /, **changes: Any) -> Recipe:
    """A recipe with a global batch of 8, in bf16; the keys of a section that changes are merged."""
    values = {"name": model, "precision": "bf16", "batch": {"global_batch": 8}, **VALUES[model]}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_recipe(values, "test")


@pytest.fixture(scope="session")
def small_recipe():
    return recipe_of
