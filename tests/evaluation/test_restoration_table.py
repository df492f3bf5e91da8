"""The table of restoration methods: each number comes from `evaluate`, or from the model itself."""

import importlib.util
import json
from pathlib import Path

import pytest

from crate_graph.evaluation.run import evaluate

TOOL = Path(__file__).parents[2] / "tools" / "restoration_table.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("restoration_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quality_and_cost(table, photographs, capsys, monkeypatch):
    monkeypatch.setattr(table, "HEIGHT", 32)
    monkeypatch.setattr(table, "WIDTH", 48)
    folder = photographs / "pictures" / "test"
    words = ["bicubic", "Graph=iglr", "--data", f"Discs={folder}", "--set", "data.degradation.kind=decimate"]
    assert table.main([*words, "data.color=y", "--repeats", "1"]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()[:4]
    cells = [cell.strip() for cell in head.split("|")[1:-1]]
    assert cells == ["method", "parameters", "kFLOP per pixel", "s per megapixel", "Discs", "Discs, paper's"]
    expected = evaluate("bicubic", str(folder))
    assert f"| {expected['psnr']:.2f} / {expected['ssim']:.4f} |" in first and "| - | - |" in first
    assert f"| {expected['psnr_pooled']:.2f} / {expected['ssim_float']:.4f} |" in first
    assert second.startswith("| Graph | - | ") and float(second.split("|")[3].replace(",", "")) > 0


def test_covariate_shift(table, photographs, capsys):
    words = ["bicubic", "--data", f"Discs={photographs / 'shards'}", "--sigma", "0", "25"]
    assert table.main(words) == 0
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    assert "| Discs, sigma 0 |" in head and "| Discs, sigma 25 |" in head
    assert table.main([*words, "--json"]) == 0
    clean, noisy = json.loads(capsys.readouterr().out)[0]["results"]
    assert clean["sigma"] == 0 and noisy["sigma"] == 25 and noisy["psnr"] < clean["psnr"] - 1
    assert f"{noisy['psnr']:.2f}" in row


def test_a_mistake_ends_it_with_a_line(table, tmp_path, capsys):
    assert table.main(["bicubic", "--data", str(tmp_path)]) == 2
    assert "no image" in capsys.readouterr().err
