"""CRATE against a ViT of equal parameters on the data that ships with the project: a table and a figure.

    .venv/bin/python tools/crate_versus_vit.py --seeds 0 1 2

trains each model once per seed (finished runs are taken as they are, cut ones go on), prints the table in Markdown and
draws the accuracy over the epochs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from compare_runs import Request, compare
from table_writing import markdown

MODELS = {"CRATE": "fashion_mnist/crate", "ViT": "fashion_mnist/vit"}
COLUMNS = ("parameters", "flops", "top1", "loss")
COLOURS = {"CRATE": "#0b6e4f", "ViT": "#b5651d"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/crate_versus_vit"))
    parser.add_argument("--figure", type=Path, default=Path("recipes/fashion_mnist/crate_versus_vit.svg"))
    args = parser.parse_args()
    folders = {
        model: [train(recipe, seed, args.runs / f"{model.lower()}-{seed}") for seed in args.seeds]
        for model, recipe in MODELS.items()
    }
    runs = [f"{model}={folder}" for model, seeds in folders.items() for folder in seeds]
    print(markdown(compare(runs, Request(COLUMNS, checkpoint="last"))), end="")
    curves = {model: [accuracy_by_epoch(folder) for folder in seeds] for model, seeds in folders.items()}
    args.figure.write_text(figure(curves))


def train(recipe: str, seed: int, folder: Path) -> Path:
    summary = folder / "summary.json"
    if not (summary.exists() and json.loads(summary.read_text())["finished"]):
        command = [sys.executable, "-m", "crate_graph", "train", recipe, f"seed={seed}", "--run-dir", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def accuracy_by_epoch(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["epoch"] + 1, record["eval_top1"]) for record in records if "eval_top1" in record]


def figure(curves: dict[str, list[list[tuple[int, float]]]]) -> str:
    """Top-1 accuracy over epochs, one thin line per seed, as a self-contained SVG."""
    width, height, left, bottom, top = 640, 360, 56, 44, 16
    points = [point for seeds in curves.values() for curve in seeds for point in curve]
    last, low, high = max(e for e, _ in points), min(a for _, a in points) // 10 * 10, 95.0

    def x(epoch: float) -> float:
        return left + (epoch - 1) / max(last - 1, 1) * (width - left - 24)

    def y(accuracy: float) -> float:
        return top + (high - accuracy) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for accuracy in range(int(low), int(high) + 1, 5):
        parts.append(f'<path d="M{left} {y(accuracy):.1f}H{width - 24}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(accuracy) + 4:.1f}" text-anchor="end">{accuracy}</text>')
    for epoch in sorted({1, *range(5, last + 1, 5), last}):
        parts.append(f'<text x="{x(epoch):.1f}" y="{height - bottom + 18}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">epoch</text>')
    parts.append(f'<text transform="translate(16 {height / 2}) rotate(-90)" text-anchor="middle">top-1 %</text>')
    for place, (model, seeds) in enumerate(curves.items()):
        for curve in seeds:
            line = " ".join(f"{x(epoch):.1f},{y(accuracy):.1f}" for epoch, accuracy in curve)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[model]}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{width - 40}" y="{height - bottom - 34 + 18 * place}" text-anchor="end" '
            f'fill="{COLOURS[model]}" font-weight="bold">{model}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
