"""Masked autoencoding: most patches of an image are hidden, and a network completes it (arXiv 2111.06377, 2404.02446).

The loss is the squared error over the hidden patches. To judge, the same on held-back images, and the PSNR of the
hidden pixels beside that of the plainest guess: the mean of the image's visible pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crate_graph.models.crate_mae import from_patches, to_patches
from crate_graph.tasks.metrics import psnr_of, to_8_bit

SHOWN = 8  # images of an evaluation that are kept to be looked at
PANELS = "what it saw", "completed", "original"  # of a picture, side by side
GREY = 0.5  # of hidden patches in a picture
PATCH_EPS = 1e-6  # beside the variance of a patch, as published


class MaskedAutoencodingTask:
    """Batches hold what `data.keyed.KeyedView` makes. Sums instead of means, as in `ClassificationTask`.

    Args:
        mask_ratio: share of the patches that are hidden.
        normalize_patches: learn each patch less its mean and over its standard deviation. Its PSNR then takes both from
            the original, so it is not one of a completion.
        mean, std: of each channel, by which images are normalised.
    """

    def __init__(self, mask_ratio: float, normalize_patches: bool, mean: Sequence[float], std: Sequence[float]):
        self.mask_ratio = mask_ratio
        self.normalize_patches = normalize_patches
        self.mean, self.std = tuple(mean), tuple(std)
        self._gallery: tuple[Tensor, Tensor] | None = None  # panels, and 0 for those of padding

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum over the images of the mean squared error of their hidden patches, and the sum of the weights.

        images (B, C, H, W) normalised; targets (B,) int64, from which masks are drawn; weights (B,), 0 for padding.
        """
        mask, predicted = self._complete(model, images, targets)  # (B, N), (B, N, p q C)
        losses = self._losses(predicted, to_patches(images, model.patch_embed.patch_size), mask)  # (B,)
        return (losses * weights).sum(), weights.sum()

    @torch.no_grad()
    def measure(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(4,) float64 sums over the batch: loss, PSNR, PSNR of the mean of what is visible, images."""
        patch_size = model.patch_embed.patch_size
        mask, predicted = self._complete(model, images, targets)  # (B, N), (B, N, p q C)
        patches = to_patches(images, patch_size)  # (B, N, p q C)
        losses = self._losses(predicted, patches, mask)  # (B,)
        if self.normalize_patches:
            mean, scale = _statistics(patches)
            predicted = predicted * scale + mean
        original, completed = self._pixels(patches), self._pixels(predicted)  # (B, N, p q, C) in [0, 1]
        guess = _visible_mean(original, mask).expand_as(original)
        rows = torch.stack(
            (
                losses.double(),
                _psnr(completed, original, mask),
                _psnr(guess, original, mask),
                torch.ones_like(losses, dtype=torch.float64),
            )
        )  # (4, B)
        if self._gallery is None:
            self._gallery = _panels(completed, original, mask, patch_size, images.shape[-2:]), weights[:SHOWN]
        # A padded image may be anything, NaN included: 0 x NaN would spoil the sum.
        return torch.where(weights > 0, rows, 0.0).sum(dim=1)

    @staticmethod
    def summarize(sums: Tensor) -> dict[str, float]:
        """Metrics of the summed `measure` results. PSNR in dB."""
        loss, psnr, guess, images = sums.tolist()
        images = max(images, 1.0)
        return {"loss": loss / images, "psnr": psnr / images, "psnr_of_visible_mean": guess / images}

    def pictures(self, images: Tensor) -> Tensor:
        """What of a batch can be shown: the images (B, C, H, W) in [0, 1]."""
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def take_gallery(self) -> Tensor | None:
        """Of the first images that were measured since the last call: hidden, completed and original side by side.

        (n, C, H, 3 W) in [0, 1]; None where there was none.
        """
        gallery, self._gallery = self._gallery, None
        if gallery is None:
            return None
        panels, weights = gallery
        return panels[weights > 0] if weights.any() else None

    def _complete(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        down, across = model.grid_size(*images.shape[-2:])
        mask = random_masks(targets, down * across, self.mask_ratio)  # (B, N)
        return mask, model(images, mask).float()

    def _losses(self, predicted: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        if self.normalize_patches:
            mean, scale = _statistics(patches)
            patches = (patches - mean) / scale
        errors = (predicted - patches).square().mean(dim=-1)  # (B, N)
        return (errors * mask).sum(dim=1) / mask.sum(dim=1)  # (B,)

    def _pixels(self, patches: Tensor) -> Tensor:
        """(B, N, p q C) normalised -> (B, N, p q, C) as an 8-bit file keeps it."""
        mean, std = (torch.tensor(values, device=patches.device) for values in (self.mean, self.std))  # (C,)
        return to_8_bit(patches.unflatten(-1, (-1, len(mean))) * std + mean)


def random_masks(numbers: Tensor, patches: int, ratio: float) -> Tensor:
    """Which patches to hide, drawn from one number for each image: (B,) int64 -> (B, patches) float32 of 0 and 1.

    Each image shows int(patches x (1 - ratio)) patches, as published, but one at least, and hides one at least. The
    hash is splitmix64 in whole numbers, so every device draws the same.
    """
    visible = min(max(int(patches * (1 - ratio) + 1e-9), 1), patches - 1)
    places = torch.arange(1, patches + 1, device=numbers.device)  # (N,)
    noise = numbers.unsqueeze(1) + places * _signed(0x9E3779B97F4A7C15)  # (B, N); products wrap at 2^64
    noise = (noise ^ _shifted(noise, 30)) * _signed(0xBF58476D1CE4E5B9)
    noise = (noise ^ _shifted(noise, 27)) * _signed(0x94D049BB133111EB)
    noise = noise ^ _shifted(noise, 31)
    ranks = noise.argsort(dim=1, stable=True).argsort(dim=1)  # (B, N)
    return (ranks >= visible).float()


def _signed(number: int) -> int:
    """A 64-bit number as int64 holds it."""
    return number - 2**64 if number >= 2**63 else number


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned numbers are: zeros come in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (B, N, 1) each."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + PATCH_EPS).sqrt()


def _visible_mean(pixels: Tensor, mask: Tensor) -> Tensor:
    """Mean of each channel over the visible patches: (B, N, p q, C), (B, N) -> (B, 1, 1, C)."""
    visible = (1 - mask)[:, :, None, None]
    return (pixels.mean(dim=2, keepdim=True) * visible).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True)


def _psnr(estimate: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """PSNR of the hidden pixels, (B,) float64 in dB."""
    errors = (estimate - original).double().square().flatten(2).mean(dim=2)  # (B, N)
    return psnr_of((errors * mask).sum(dim=1) / mask.sum(dim=1))


def _panels(
    completed: Tensor, original: Tensor, mask: Tensor, patch_size: tuple[int, int], size: Sequence[int]
) -> Tensor:
    hidden = mask[:SHOWN, :, None, None] > 0
    completed, original = completed[:SHOWN], original[:SHOWN]
    panels = (torch.where(hidden, GREY, original), torch.where(hidden, completed, original), original)
    return torch.cat([from_patches(panel.flatten(2), patch_size, tuple(size)) for panel in panels], dim=-1)
