"""Are two models the same function? Compare what they compute on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crate_graph.data.degrade import observe, pack, unpack
from crate_graph.export.restorer import Restorer
from crate_graph.export.source import Source
from crate_graph.tasks.restoration import estimate

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
    differences = []
    for count in (1, BATCH):
        images = example_images(source, count)  # (count, C, H, W)
        differences.append(_difference("logits", source.model(images), reloaded(images), tolerance, name))  # (count, K)
    return _largest(differences)


def example_observation(restorer: Restorer, height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded noise for a picture, degraded as in training: observed, mask (batch, C, height, width), sigma (batch,)."""
    generator = torch.Generator().manual_seed(SEED)
    channels = 1 if restorer.color == "y" else 3
    clean = torch.rand(batch, height, width, channels, generator=generator).numpy()
    observations = [observe(picture, restorer.degradation, (SEED, 0, n)) for n, picture in enumerate(clean)]
    observed, mask, sigma = unpack(pack(observations))
    return observed.contiguous(), mask.contiguous(), sigma.contiguous()


@torch.no_grad()
def compare_estimates(
    restorer: Restorer, reloaded: Callable[[Tensor, Tensor, Tensor], Tensor], tolerance: float, name: str
) -> tuple[float, float]:
    """As `compare_logits`, for the estimates of a restoration network on pictures of even and of odd sides."""
    differences = []
    for height, width, batch in ((24, 32, 2), (19, 37, 1)):
        observation = example_observation(restorer, height, width, batch)
        expected, actual = estimate(restorer.model, *observation), reloaded(*observation)  # (batch, C, H, W) both
        differences.append(_difference("estimates", expected, actual, tolerance, name))
    return _largest(differences)


def _difference(what: str, expected: Tensor, actual: Tensor, tolerance: float, name: str) -> tuple[float, float]:
    if actual.shape != expected.shape:
        raise RuntimeError(f"{name} export: {what} of shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    allowed = tolerance * max(1.0, expected.abs().max().item())
    difference = (actual - expected).abs().max().item()
    if not difference <= allowed:  # written so that NaN fails
        raise RuntimeError(
            f"{name} export: {what} differ from the checkpoint's by {difference:.3g}, more than {allowed:.3g}; "
            f"nothing was written"
        )
    return difference, allowed


def _largest(differences: list[tuple[float, float]]) -> tuple[float, float]:
    return max(difference for difference, _ in differences), max(allowed for _, allowed in differences)
