"""The README's lines for users of timm and of transformers do what they say; then training goes on here."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from crate_graph.checkpoint.initial import read_origin
from crate_graph.data import open_dataset
from crate_graph.data.extract import extract_samples
from crate_graph.export import export

README = Path(__file__).parents[2] / "README.md"


def lines_under(heading: str) -> str:
    """The code in the section of that heading."""
    section = re.search(rf"(?ms)^### {heading}$(.*?)^##", README.read_text())[1]
    return textwrap.dedent(re.search(r"(?:^ {4}.*\n)+", section, re.MULTILINE)[0])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the README's pictures, a few of them, of ten classes where the checkpoint has four; their names."""
    monkeypatch.chdir(tmp_path)
    extract_samples(open_dataset("fashion_mnist"), "train", "clothes", 20, by_class=True)
    return ImageFolder("clothes/train").classes


@pytest.mark.parametrize("kind", ["crate", "crate_rgb"])
def test_ten_lines_of_timm(kind, checkpoints, home, capsys):
    export(str(checkpoints[kind]), "timm", "exported/timm")
    code = lines_under("Fine-tune it in timm")
    if kind == "crate_rgb":  # as the README says of it
        code = code.replace("(1, 96, 96)", "(3, 96, 96)").replace("Compose([Grayscale(), view])", "view")
    assert len(code.splitlines()) <= 14
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.strip() in home
    before, after = read_origin("exported/timm").weights, read_origin("tuned.pth").weights
    assert after["head.weight"].shape == (10, 32) and after["pos_embed"].shape == (1, 145, 32)
    moved = (after["blocks.0.ista.dictionary"] - before["blocks.0.ista.dictionary"]).abs()
    assert 0 < moved.max() < 1.1e-4 + 1e-4  # one step of AdamW, and its decay


def test_ten_lines_of_transformers(checkpoints, home, capsys):
    torch.manual_seed(0)
    export(str(checkpoints["crate"]), "hf", "exported/hf")
    capsys.readouterr()
    code = lines_under("Fine-tune it in Hugging Face transformers")
    assert len(code.splitlines()) <= 13
    exec(code, {})
    assert capsys.readouterr().out.strip().splitlines()[-1] in home
    before, after = read_origin("exported/hf"), read_origin("tuned")
    assert before.kind == after.kind == "Hugging Face folder" and after.weights["head.weight"].shape == (10, 32)
    moved = (after.weights["blocks.0.ista.dictionary"] - before.weights["blocks.0.ista.dictionary"]).abs()
    assert 0 < moved.max() < 2.1e-4
