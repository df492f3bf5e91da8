"""Are two models the same function? Compare their logits on a fixed batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crate_graph.export.source import Source

BATCH = 3
SEED = 0


def example_images(source: Source, batch: int = BATCH) -> Tensor:
    """Seeded normal noise, the range of normalised pixels: (batch, C, H, W) float32."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(batch, *source.input_shape, generator=generator)


@torch.no_grad()
def compare_logits(
    source: Source, reloaded: Callable[[Tensor], Tensor], tolerance: float, name: str
) -> tuple[float, float]:
    """Largest difference of the logits for batches of 1 and of `BATCH` images, and what is allowed.

    Allowed is `tolerance` x max(1, largest logit). Raises RuntimeError beyond it, or where a logit is not finite.
    """
    difference = allowed = 0.0
    for count in (1, BATCH):
        images = example_images(source, count)  # (count, C, H, W)
        expected, actual = source.model(images), reloaded(images)  # (count, K) both
        if actual.shape != expected.shape:
            raise RuntimeError(f"{name} export: logits of shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
        allowed = max(allowed, tolerance * max(1.0, expected.abs().max().item()))
        gap = (actual - expected).abs().max().item()
        if not gap <= allowed:  # written so that NaN fails
            raise RuntimeError(
                f"{name} export: logits differ from the checkpoint's by {gap:.3g}, more than {allowed:.3g}; "
                f"nothing was written"
            )
        difference = max(difference, gap)
    return difference, allowed
