"""Image classification: cross-entropy to train, top-1 and top-5 to judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassificationTask:
    """Sums instead of means, so that any split of a batch over micro batches and processes adds up to the same."""

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropy of each image, and the sum of the weights.

        images (B, C, H, W); targets (B,) class numbers or (B, K) probabilities; weights (B,), 0 for padding.
        """
        logits = model(images).float()  # (B, K)
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)  # (B,)
        return (losses * weights).sum(), weights.sum()

    @torch.no_grad()
    def measure(self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(4,) float64 sums over the batch: loss without smoothing, top-1 hits, top-5 hits, samples."""
        logits = model(images).float()  # (B, K)
        losses = F.cross_entropy(logits, targets, reduction="none")  # (B,)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = ranked == targets[:, None]  # (B, 5)
        rows = torch.stack((losses, hits[:, 0].float(), hits.any(dim=1).float(), torch.ones_like(losses)))  # (4, B)
        # A padded image may be anything, NaN included: 0 x NaN would spoil the sum.
        return torch.where(weights > 0, rows, 0.0).double().sum(dim=1)

    @staticmethod
    def summarize(sums: Tensor) -> dict[str, float]:
        """Metrics of the summed `measure` results."""
        loss, top1, top5, samples = sums.tolist()
        samples = max(samples, 1.0)
        return {"loss": loss / samples, "top1": 100 * top1 / samples, "top5": 100 * top5 / samples}

    @staticmethod
    def pictures(images: Tensor) -> Tensor:
        """What of a batch can be shown: the images (B, C, H, W), stretched to [0, 1]."""
        low, high = images.amin(), images.amax()
        return (images - low) / (high - low).clamp(min=1e-6)

    @staticmethod
    def take_gallery() -> None:
        """There is nothing to look at in an evaluation."""
