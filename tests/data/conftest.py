from __future__ import annotations

import io

import numpy as np
import pytest
import yaml
from PIL import Image
from webdataset import TarWriter

from crate_graph.data.dataset import open_dataset
from crate_graph.data.index import build_index, write_index


def image_bytes(seed: int, size=(12, 12), channels=3, kind="PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels.squeeze()).save(file, format=kind)
        return file.getvalue()


def write_shard(path, samples) -> None:
    """`samples`: (key, {extension: bytes}) in order."""
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})


@pytest.fixture
def picture():
    return image_bytes


@pytest.fixture
def shard():
    return write_shard


@pytest.fixture
def make_dataset(tmp_path):
    """Builds a data set of real tars: make(counts of the shards, ...) -> Dataset. Sample n has label n modulo 5."""

    def make(counts=(7, 5, 9, 4), *, split="train", size=(12, 12), channels=3, change=None, classes=5):
        first = 0
        for number, count in enumerate(counts):
            samples = []
            for n in range(first, first + count):
                members = {"png": image_bytes(n, size, channels), "cls": str(n % 5).encode()}
                samples.append((f"s{n:04d}", change(n, members) if change else members))
            path = tmp_path / f"{split}-{number:06d}.tar"
            write_shard(path, samples)
            write_index(build_index(path))
            first += count
        description = {
            "name": "tiny",
            "licence": "none",
            "source": "made by a test",
            "channels": channels,
            "classes": classes,
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
            "splits": {split: {"shards": f"{split}-{{000000..{len(counts) - 1:06d}}}.tar", "samples": sum(counts)}},
        }
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(description))
        return open_dataset(tmp_path)

    return make
