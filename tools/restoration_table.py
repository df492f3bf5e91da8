"""Restoration methods side by side: cost, and quality on data sets or folders of pictures, as a table in Markdown.

    .venv/bin/python tools/restoration_table.py bilinear menon2007 uGTV=runs/demosaicking_ugtv --data Kodak=~/kodak24

A method or a data set may be given a title for the table, TITLE=NAME. Methods are what `crate-graph evaluate` takes.
With `--sigma 0 10 20 30 50` it prints the covariate-shift table instead: pictures with Gaussian noise of these levels
(of 255) for models that were trained without. PSNR / SSIM stand in the usual form, then in the paper's (unclipped,
PSNR of the pooled error); see crate_graph/tasks/restoration.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from table_writing import markdown_lines
from torch import nn

from crate_graph.cluster.ranks import Ranks
from crate_graph.config.schema import Recipe
from crate_graph.data.degrade import observe, pack, unpack
from crate_graph.errors import UserError
from crate_graph.evaluation.classical import Classical
from crate_graph.evaluation.run import judge
from crate_graph.evaluation.subjects import open_subject
from crate_graph.tasks.build import color_channels
from crate_graph.tasks.restoration import estimate
from crate_graph.train.flops import count_flops

HEIGHT, WIDTH = 512, 768  # pixels of the picture that is timed: Kodak's


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="[TITLE=]METHOD")
    parser.add_argument("--data", nargs="+", required=True, metavar="[TITLE=]DATASET")
    parser.add_argument("--sigma", nargs="+", type=float, metavar="S", help="noise levels of the covariate-shift table")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="as of crate-graph evaluate")
    parser.add_argument("--tile", type=int, metavar="N", help="as of crate-graph evaluate")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timings, of which the least counts (3)")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    args = parser.parse_args(argv)
    try:
        rows = [measure(method, args) for method in args.methods]
    except UserError as error:
        print(f"restoration_table: error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        cells = quality(rows) if args.sigma is None else covariate_shift(rows)
        print(markdown_lines([list(cells[0]), *(row.values() for row in cells)]))
        print(f"\nTimes: {device_name()}, a picture of {WIDTH} x {HEIGHT}." if args.sigma is None else "")
    return 0


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """One method on all data sets, at all noise levels."""
    title, name = titled(method)
    levels = [None] if args.sigma is None else args.sigma
    results = []
    for data in args.data:
        data_title, source = titled(data)
        for sigma in levels:
            noise = [] if sigma is None else [f"data.degradation.sigma={sigma}"]
            subject = open_subject(name, source, [*args.set, *noise])
            metrics = judge(subject, args.tile)
            results.append({"data": data_title, "sigma": sigma, **metrics})
            print(f"{title} {data_title} {'' if sigma is None else sigma}", file=sys.stderr, flush=True)
    costs = cost(subject.model, subject.recipe, args.repeats) if args.sigma is None else {}
    return {"method": title, **costs, "results": results}


def cost(model: nn.Module, recipe: Recipe, repeats: int) -> dict[str, Any]:
    """Parameters, FLOPs per pixel (None for a classical method) and seconds per megapixel."""
    channels, device = color_channels(recipe), Ranks().device
    clean = np.random.default_rng(0).random((HEIGHT, WIDTH, channels), dtype=np.float32)
    images = pack([observe(clean, recipe.data.degradation, (0, 0, 0))]).to(device)
    observed, mask, sigma = unpack(images)
    model = model.to(device).eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first warms up
            started = time.perf_counter()
            estimate(model, observed, mask, sigma).sum().item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    flops = None
    if not isinstance(model, Classical):
        on_meta = copy.deepcopy(model).to("meta")
        flops = count_flops(on_meta, (channels, HEIGHT, WIDTH), restores=True) / (HEIGHT * WIDTH)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops_per_pixel": flops,
        "seconds_per_megapixel": min(seconds[1:]) / (HEIGHT * WIDTH / 1e6),
        "device": device_name(),
    }


def quality(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each method: costs, then both metrics on each data set."""
    return [
        {
            "method": row["method"],
            "parameters": f"{row['parameters']:,}" if row["parameters"] else "-",
            "kFLOP per pixel": f"{row['flops_per_pixel'] / 1e3:,.0f}" if row["flops_per_pixel"] else "-",
            "s per megapixel": f"{row['seconds_per_megapixel']:.3g}",
            **both_forms(row["results"], lambda result: result["data"]),
        }
        for row in rows
    ]


def covariate_shift(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each method: both metrics on each data set at each noise level."""
    return [
        {
            "method": row["method"],
            **both_forms(row["results"], lambda result: f"{result['data']}, sigma {result['sigma']:g}"),
        }
        for row in rows
    ]


def both_forms(results: list[dict[str, Any]], title) -> dict[str, str]:
    cells = {}
    for result in results:
        cells[title(result)] = f"{result['psnr']:.2f} / {result['ssim']:.4f}"
        cells[f"{title(result)}, paper's"] = f"{result['psnr_pooled']:.2f} / {result['ssim_float']:.4f}"
    return cells


def titled(text: str) -> tuple[str, str]:
    """TITLE=NAME, or NAME for both."""
    title, equals, name = text.partition("=")
    return (title, name) if equals else (text.rstrip("/").rpartition("/")[2], text)


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


if __name__ == "__main__":
    sys.exit(main())
