"""Image restoration: a degraded picture in, the picture out. PSNR and SSIM to judge, in two forms.

    psnr, ssim                 the usual one: estimates clipped and rounded to 8 bits, means over the pictures
    psnr_pooled, ssim_float    the one of arXiv 2406.04090: estimates as they come, the PSNR of the mean squared error
                               over all values of all pictures, the mean SSIM

Neither leaves out a border.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_graph.data.degrade import unpack
from crate_graph.tasks.metrics import mean_squared_error, psnr_of, ssim, to_8_bit

_CHARBONNIER = 1e-3  # below it the loss is quadratic (Charbonnier et al., ICIP 1994)
_HUBER = 0.01  # likewise (Huber, Ann. Math. Statist. 35(1), 1964); divided by it, so that the slope is 1 above


def _charbonnier(error: Tensor) -> Tensor:
    return (error.square() + _CHARBONNIER**2).sqrt()


def _huber(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=_HUBER)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "charbonnier": _charbonnier,
    "l1": torch.abs,
    "huber": _huber,
    "mse": torch.square,
}


class RestorationTask:
    """Batches hold what `data.degrade.pack` makes. Sums instead of means, as in `ClassificationTask`."""

    def __init__(self, loss: str = "charbonnier"):
        self._loss = LOSSES[loss]

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum over the pictures of the mean loss of their values, and the sum of the weights.

        images (B, 2C + 1, H, W): observed, mask, noise level; targets (B, C, H, W) in [0, 1]; weights (B,).
        """
        losses = self._losses(estimate(model, *unpack(images)).float(), targets)  # (B,)
        return (losses * weights).sum(), weights.sum()

    @torch.no_grad()
    def measure(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(7,) float64 sums over the batch: loss, PSNR, SSIM, squared error, its values, SSIM unrounded, pictures."""
        restored = estimate(model, *unpack(images)).float()  # (B, C, H, W)
        good = weights > 0  # padding takes part in the forward pass only, where ranks may wait for each other
        restored, targets = restored[good], targets[good]
        if not len(targets):
            return weights.new_zeros(7, dtype=torch.float64)
        stored = to_8_bit(restored)
        values = targets[0].numel()
        rows = (
            self._losses(restored, targets).double(),
            psnr_of(mean_squared_error(stored, targets)),
            ssim(stored, targets),
            mean_squared_error(restored, targets) * values,
            weights.new_full((len(targets),), values, dtype=torch.float64),
            ssim(restored, targets),
            weights.new_ones(len(targets), dtype=torch.float64),
        )
        return torch.stack(rows).sum(dim=1)

    @staticmethod
    def summarize(sums: Tensor) -> dict[str, float]:
        """Metrics of the summed `measure` results. PSNR in dB, SSIM from -1 to 1."""
        loss, psnr, similarity, error, values, similarity_float, pictures = sums.tolist()
        pictures = max(pictures, 1.0)
        return {
            "loss": loss / pictures,
            "psnr": psnr / pictures,
            "ssim": similarity / pictures,
            "psnr_pooled": psnr_of(torch.tensor(error / max(values, 1.0), dtype=torch.float64)).item(),
            "ssim_float": similarity_float / pictures,
        }

    @staticmethod
    def pictures(images: Tensor) -> Tensor:
        """What of a batch can be shown: the observed values, (B, C, H, W) in [0, 1]."""
        return unpack(images)[0].clamp(0, 1)

    @staticmethod
    def take_gallery() -> None:
        """Restored pictures are written by the verb `restore`."""

    def _losses(self, restored: Tensor, targets: Tensor) -> Tensor:
        return self._loss(restored - targets).flatten(1).mean(dim=1)  # (B,)


def estimate(model: nn.Module, observed: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
    """`model(observed, mask, sigma)`, where the noise level is told only to a model that is `noise_aware`.

    Any other keeps the known values as they are, noise included.
    """
    return model(observed, mask, sigma if getattr(model, "noise_aware", False) else None)
