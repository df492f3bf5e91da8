"""Runs side by side: each cell against a number that is taken from the files by other means."""

import csv
import io
import json
import re
import shutil
import statistics
import tarfile

import numpy as np
import pytest
import torch
import yaml
from compare_runs import main
from PIL import Image
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from crate_graph.analysis.layers import activations
from crate_graph.checkpoint.manifest import seal
from crate_graph.checkpoint.model import load_model
from crate_graph.cli import main as crate_graph
from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import bayer_mask, observe
from crate_graph.evaluation.corruptions import Corruption

CLASSES, SIDE, PATCH, DIM, DEPTH = 6, 28, 7, 32, 2
SIZE = f"img_size: {SIDE}, patch_size: {PATCH}, in_chans: 1, embed_dim: {DIM}, depth: {DEPTH}, num_heads: 2"


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A data set of grey stripes, one direction for each class: 48 to train, 30 to test."""
    folder, generator = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for split, each in (("train", 8), ("test", 5)):
        for number in range(CLASSES * each):
            angle = np.pi * (number % CLASSES) / CLASSES
            waves = np.sin(rows * np.sin(angle) + columns * np.cos(angle) + generator.uniform(0, 6))
            pixels = (127.5 + 60 * waves + generator.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)
            place = folder / "pictures" / split / f"class{number % CLASSES}" / f"{number:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
        words = ["shards", "make", str(folder / "pictures" / split), "--output", str(folder / "shards")]
        assert crate_graph([*words, "--split", split, "--shards", "2"]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(runner, stripes):
    """Two seeds of CRATE and of a ViT of timm, one of them shorter than the others of its recipe."""
    words = [f"data.dataset={stripes}", "schedule.max_steps=null", "schedule.epochs=2", "checkpoint.every_epochs=1"]
    vit = ["name=vit", "model.name=vit_tiny_patch16_224", "optimizer.lr=1e-3"]
    return {
        f"{model}-{seed}": runner.trained(f"{model}-{seed}", *words, *own, f"seed={seed}").run_dir
        for model, own in (("crate", []), ("vit", vit))
        for seed in (0, 1)
    }


def test_x(runs, stripes):
    print(runs, list(stripes.iterdir()))
    with tarfile.open(sorted(stripes.glob("test*.tar"))[0]) as t:
        print(t.getnames())
    print((stripes/"dataset.yaml").read_text())
