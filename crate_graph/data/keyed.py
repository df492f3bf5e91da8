"""Views for a task that draws random numbers for each sample, such as which patches to hide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from crate_graph.data.augment import EvalView, Key, TrainView, keyed_number

TARGET = 3  # the last part of a key: what it is drawn for; augmentation has 1 and 2


class KeyedView:
    """A view of images whose targets are one random number for each, keyed by (seed, epoch, sample), and no labels.

    What a task draws from that number does not depend on who reads the sample, nor beside which others it stands.
    """

    mixes = False

    def __init__(self, view: TrainView | EvalView):
        self.shape = view.shape
        self.view = view.view
        self._finish = view.finish

    def batch(
        self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[Key], slots: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, C, H, W) float32, normalised, and numbers (n,) int64."""
        numbers = [keyed_number((*key, TARGET)) - 2**63 for key in keys]
        return self._finish(pixels, keys), torch.tensor(numbers, dtype=torch.int64)
