"""Small trained-looking checkpoints: CRATE on grey images, CRATE and a timm ViT on colour ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import crate_graph
from crate_graph.checkpoint import CheckpointStore
from crate_graph.checkpoint.contents import Contents
from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.engine.base import Portable

CLASSES = ["shirt", "coat", "bag", "boot"]
SIZES = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
MODELS = {
    "crate": ("crate_tiny_patch16_224", 1),
    "crate_rgb": ("crate_tiny_patch16_224", 3),
    "vit": ("vit_tiny_patch16_224", 3),
    "vit_grey": ("vit_tiny_patch16_224", 1),
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def write_checkpoint(folder: Path, name: str, channels: int, resize: int | None = 31) -> Path:
    torch.manual_seed(0)
    kwargs = {**SIZES, "in_chans": channels, "drop_path_rate": 0.1}
    model = crate_graph.create_model(name, num_classes=len(CLASSES), **kwargs)
    nn.init.normal_(model.get_classifier().weight)  # a timm ViT starts with logits of nearly zero
    recipe = Recipe(
        name="toy",
        model={"name": name, "kwargs": kwargs},
        data={"dataset": "toy", "eval_transform": {"size": SIZES["img_size"], "resize": resize}},
    )
    contents = Contents(Portable(model.state_dict(), {}, 30), None, {"step": 30}, dump_recipe(recipe))
    facts = {
        "model": {"name": name, "kwargs": kwargs, "num_classes": len(CLASSES)},
        "dataset": {"name": "toy", "classes": CLASSES, "mean": MEAN[:channels], "std": STD[:channels]},
        "metrics": {"top1": 87.5, "loss": 0.25},
    }
    return CheckpointStore(folder).write(30, contents.to_files(), facts)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(folder / kind, *model) for kind, model in MODELS.items()}
