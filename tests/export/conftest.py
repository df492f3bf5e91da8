"""Small trained-looking checkpoints: CRATE on grey images, CRATE and a timm ViT on colour ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forks import Forks
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


FRESH = """\
import sys
assert not {"crate_graph", "transformers", "onnx", "onnxruntime"} & sys.modules.keys()
"""


@pytest.fixture(scope="session")
def torch_loaded() -> Iterator[Forks]:
    """Starts processes of a stranger, who has loaded PyTorch and timm but none of our package nor of the others."""
    one = {"OMP_NUM_THREADS": "1"}  # NumPy would start threads when it is loaded
    with Forks("torch", "timm", environment=lambda: {**os.environ, "HF_HUB_OFFLINE": "1"}, loading=one) as forks:
        yield forks


@pytest.fixture
def run_fresh(torch_loaded: Forks, tmp_path: Path) -> Callable[..., str]:
    """Runs a script in a stranger's process, in `tmp_path`; `names` become variables of it. Gives what it printed."""

    def run(script: str, **names: Path | str) -> str:
        program, out, err = (tmp_path / name for name in ("program.py", "out.txt", "err.txt"))
        assignments = "".join(f"{name} = {str(path)!r}\n" for name, path in names.items())
        program.write_text(FRESH + assignments + script)
        for file in (out, err):
            file.write_text("")
        code = torch_loaded.start([program], folder=tmp_path, out=out, err=err).wait(200)
        assert code == 0, err.read_text()
        return out.read_text()

    return run
