"""The verb `restore`: pictures in, restored pictures out.

All pictures are read and checked before the first is restored, and every file appears whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_graph.cluster.ranks import discover
from crate_graph.data.decode import upright
from crate_graph.data.progress import progress
from crate_graph.errors import UserError
from crate_graph.export.restorer import Restorer
from crate_graph.models.observation import interpolate_known
from crate_graph.models.tiles import restore_tiled
from crate_graph.paths import expanded
from crate_graph.restore.compare import write_comparison
from crate_graph.restore.outputs import Outputs, plan_outputs
from crate_graph.restore.pictures import Picture, read_picture, write_picture
from crate_graph.restore.raw import SUFFIXES, read_raw
from crate_graph.restore.request import Request, check_request
from crate_graph.restore.scene import Scene, bring_to_phase, observe_scene
from crate_graph.tasks.metrics import SSIM_WINDOW, mean_squared_error, psnr_of, ssim, to_8_bit
from crate_graph.tasks.restoration import estimate
from crate_graph.weights import list_weights, load_restorer

MOST_WHOLE = 2**19  # pixels: a larger picture is restored in tiles, unless told otherwise; uGTV takes 10 kB for each
TILE = 512


def restore(
    name: str,
    photos: Sequence[str | Path],
    output: str | Path,
    request: Request,
    *,
    compare: bool = False,
    tile: int | None = None,
    device: str | None = None,
    format: str | None = None,
    force: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Restore pictures and write them to the folder `output`, each under its name.

    Args:
        name: shipped weights, a checkpoint, or an exported file; see `weights.load_restorer`.
        photos: PNG, TIFF, JPEG or camera RAW files.
        request: what is to be done with them.
        compare: write NAME.compare.png too: the input as bilinear interpolation, the result, the original if known.
        tile: side of the tiles of a picture; 0 never cuts; None cuts what has more than `MOST_WHOLE` pixels.
        device: as torch names it; None for the GPU where there is one.
        format: PNG, TIFF or JPEG; None for that of each picture.
        force: replace files that exist.
        told: is given the result of each picture as soon as its files are there.

    Returns:
        For each picture: picture, output, width, height, seconds; where the original is known psnr, ssim (8 bits, as
        usual; None for a picture smaller than SSIM's window) and psnr_before, that of the interpolation; with `compare`
        comparison.

    Raises:
        UserError: see `load_restorer`, `check_request`, `read_picture`, `read_raw`, `plan_outputs`; a picture smaller
            than the network's window; a mosaic that has colours; a device that is not there; too little memory.
    """
    restorer = load_restorer(name)
    restorer.model.to(_device(device))
    checked = [_check(expanded(photo), request, restorer, name) for photo in photos]
    formats = [(one.path, one.format) for one in checked]
    outputs = plan_outputs(formats, expanded(output), compare=compare, format=format, force=force)
    tiles = [_tile_of(one, tile) for one in checked]
    calls = sum(_calls(one, side) for one, side in zip(checked, tiles, strict=True))
    shown = name if name in list_weights() else restorer.recipe  # in captions
    ticks = progress(range(calls), calls, "tiles restored")
    results = []
    try:
        for one, side, files in zip(checked, tiles, outputs, strict=True):
            with _naming_a_full_disk(files):
                results.append(_restore_one(one, files, restorer, side, ticks, shown, force))
            told(results[-1])
        next(ticks, None)  # the last one is done
    finally:
        ticks.close()
    return results


@dataclass(frozen=True)
class Checked:
    """A picture that can be restored. Its pixels are read again when its turn comes."""

    path: Path
    request: Request
    format: str
    height: int  # of the result as it is computed, before it is turned upright
    width: int


def _check(path: Path, request: Request, restorer: Restorer, name: str) -> Checked:
    picture = _read(path)
    if picture.phase is not None:
        if request.kind != "none":
            raise UserError(f"{path}: a camera's mosaic, which says its phase; leave --degrade, --mosaic, --scale out")
        request = replace(request, mosaic=picture.phase)
    check_request(request, restorer, name)
    height, width, channels = picture.pixels.shape
    if request.mosaic is not None and channels != 1:
        raise UserError(
            f"{path}: a mosaic has one channel and this is in colour; to try a full picture use --degrade "
            f"bayer:{request.mosaic}"
        )
    height, width = height * (request.scale or 1), width * (request.scale or 1)
    window = restorer.model.window
    if min(height, width) < window:
        raise UserError(
            f"{path}: {width} x {height} pixels are fewer than the window of {window} x {window}; use a larger picture"
        )
    return Checked(path, request, picture.format, height, width)


def _read(path: Path) -> Picture:
    return read_raw(path) if path.suffix.lower() in SUFFIXES else read_picture(path)


def _restore_one(
    one: Checked, files: Outputs, restorer: Restorer, tile: int, ticks: Iterator[int], name: str, force: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    picture = _read(one.path)
    is_mosaic = one.request.mosaic is not None
    # a mosaic is turned after it is restored: its phase is that of the pixels as they are stored
    pixels = picture.pixels if is_mosaic else upright(picture.pixels, picture.orientation)
    scene = observe_scene(pixels, one.request, restorer.color)
    before = interpolate_known(scene.observed, scene.mask)
    after = _apply(restorer, scene, one.request, tile, ticks)

    def finished(channels: Tensor) -> np.ndarray:
        shown = scene.picture_of(channels)
        shown = picture.develop(shown) if picture.develop else shown
        return upright(shown, picture.orientation) if is_mosaic else shown

    result = finished(after)
    write_picture(files.picture, result, format=files.format, bits=picture.bits, icc=picture.icc, replace=force)
    height, width = result.shape[:2]
    facts = {"picture": str(one.path), "output": str(files.picture), "width": width, "height": height}
    if scene.clean is not None:
        facts |= _quality(before, after, scene.clean)
    if files.comparison is not None:
        panels = _panels(name, one.request, facts, finished(before), result, scene.original)
        write_comparison(files.comparison, panels, picture.icc)
        facts["comparison"] = str(files.comparison)
    return {**facts, "seconds": round(time.perf_counter() - started, 3)}


@torch.inference_mode()
def _apply(restorer: Restorer, scene: Scene, request: Request, tile: int, ticks: Iterator[int]) -> Tensor:
    """The estimate, (1, C, H, W) on the CPU."""
    device = next((tensor.device for tensor in restorer.model.state_dict().values()), torch.device("cpu"))
    observed, mask, border = scene.observed, scene.mask, (0, 0)
    if request.phase is not None and restorer.degradation.phase != "any":
        observed, mask, border = bring_to_phase(observed, mask, request.phase, restorer.degradation.phase)
    sigma = torch.tensor([request.told_sigma()], device=device)

    def model(observed: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
        next(ticks, None)
        return estimate(restorer.model, observed, mask, sigma).float()

    observed, mask = observed.to(device), mask.to(device)
    with _naming_too_little_memory(observed, device):
        restored = restore_tiled(model, observed, mask, sigma, tile=tile) if tile else model(observed, mask, sigma)
    rows, columns = border
    return restored[..., rows:, columns:].cpu()


@contextmanager
def _naming_a_full_disk(files: Outputs) -> Iterator[None]:
    """A picture without its comparison goes too; those that were finished stay."""
    try:
        yield
    except OSError as error:
        files.picture.unlink(missing_ok=True)
        raise UserError(
            f"{files.picture}: cannot be written ({error.strerror}); make room there, and start again with --force, "
            f"since pictures before this one are finished"
        ) from None


@contextmanager
def _naming_too_little_memory(observed: Tensor, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError; on a CPU only the text tells
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not lacking:
            raise
        height, width = observed.shape[-2:]
        raise UserError(
            f"{width} x {height} pixels do not fit into the memory of {device}; use --tile {TILE}, or a smaller one"
        ) from None


def _quality(before: Tensor, after: Tensor, clean: Tensor) -> dict[str, Any]:
    """The usual metrics: 8 bits, no border left out."""

    def psnr(x: Tensor) -> float:
        return psnr_of(mean_squared_error(to_8_bit(x), clean)).item()

    large = min(clean.shape[-2:]) >= SSIM_WINDOW
    return {
        "psnr": psnr(after),
        "ssim": ssim(to_8_bit(after), clean).item() if large else None,
        "psnr_before": psnr(before),
    }


def _panels(
    name: str,
    request: Request,
    facts: dict[str, Any],
    before: np.ndarray,
    after: np.ndarray,
    original: np.ndarray | None,
) -> list[tuple[str, np.ndarray]]:
    how = "input" if request.kind == "none" else "input, bilinear"
    decibel = {key: f"  {facts[key]:.2f} dB" for key in ("psnr", "psnr_before") if key in facts}
    panels = [(how + decibel.get("psnr_before", ""), before), (name + decibel.get("psnr", ""), after)]
    return panels if original is None else [*panels, ("original", original)]


def _tile_of(one: Checked, tile: int | None) -> int:
    if tile is None:
        return TILE if one.height * one.width > MOST_WHOLE else 0
    return tile


def _calls(one: Checked, tile: int) -> int:
    """How often the network is called, counted by a run that computes nothing."""
    if not tile:
        return 1
    calls = 0

    def count(observed: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return observed

    blank = torch.zeros(1, 1, 1, 1).expand(1, 1, one.height, one.width)
    restore_tiled(count, blank, blank, tile=tile)
    return calls


def _device(name: str | None) -> torch.device:
    if name is None:
        return discover().device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: cannot be used here; write cpu, or cuda where there is a GPU")
    return device
