"""The README's lines for users of timm and of transformers do what they say; then training goes on here."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_graph.checkpoint.initial import read_origin
from crate_graph.export import export

README = Path(__file__).parents[2] / "README.md"


def lines_under(heading: str) -> str:
    """The code in the section of that heading."""
    section = re.search(rf"(?ms)^### {heading}$(.*?)^##", README.read_text())[1]
    return textwrap.dedent(re.search(r"(?:^ {4}.*\n)+", section, re.MULTILINE)[0])


@pytest.fixture
def home(checkpoints, tmp_path, monkeypatch):
    """A folder with pictures of three classes, where the checkpoint has four, and with the exported folders."""
    for number in range(9):
        folder = tmp_path / "flowers" / "train" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return checkpoints["crate_rgb"]


def test_ten_lines_of_timm(home, capsys):
    export(str(home), "timm", "exported/timm")
    code = lines_under("Fine-tune it in timm")
    assert len(code.splitlines()) <= 13
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.strip() in ("class0", "class1", "class2")
    before, after = read_origin("exported/timm").weights, read_origin("tuned.pth").weights
    assert after["head.weight"].shape == (3, 32) and after["pos_embed"].shape == (1, 145, 32)
    moved = (after["blocks.0.ista.dictionary"] - before["blocks.0.ista.dictionary"]).abs()
    assert 0 < moved.max() < 1.1e-4 + 1e-4  # one step of AdamW, and its decay


def test_ten_lines_of_transformers(home, capsys):
    torch.manual_seed(0)
    export(str(home), "hf", "exported/hf")
    capsys.readouterr()
    code = lines_under("Fine-tune it in Hugging Face transformers")
    assert len(code.splitlines()) <= 13
    exec(code, {})
    assert capsys.readouterr().out.strip().splitlines()[-1] in ("class0", "class1", "class2")
    before, after = read_origin("exported/hf"), read_origin("tuned")
    assert before.kind == after.kind == "Hugging Face folder" and after.weights["head.weight"].shape == (3, 32)
    moved = (after.weights["blocks.0.ista.dictionary"] - before.weights["blocks.0.ista.dictionary"]).abs()
    assert 0 < moved.max() < 2.1e-4
