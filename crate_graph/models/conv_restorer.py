"""A small residual convolutional network for restoration: the baseline that has no graph in it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from crate_graph.models.observation import PackedInput, check_observation, keep_observed


class ConvRestorer(nn.Module):
    """Residual blocks of two 3x3 convolutions at half the resolution, as EDSR has them (arXiv 1707.02921).

    The estimate is a linear interpolation of the known values plus what the network adds.

    Args:
        in_chans: channels of the picture, 3 or 1.
        dim: feature maps, at half the picture's resolution.
        depth: residual blocks.
        noise_aware: take sigma; known values are then kept only where it is 0.
    """

    window = 5
    multiple = 2

    def __init__(self, in_chans: int = 3, dim: int = 56, depth: int = 5, noise_aware: bool = False):
        super().__init__()
        self.in_chans, self.noise_aware = in_chans, noise_aware
        self.entry = PackedInput(in_chans, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
            for _ in range(depth)
        )
        self.exit = nn.Conv2d(dim, 4 * in_chans, 3, padding=1)
        nn.init.zeros_(self.exit.weight)  # training starts from the interpolation
        nn.init.zeros_(self.exit.bias)

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        """observed, mask (B, C, H, W) in [0, 1]; sigma (B,), used where the network is noise aware. -> (B, C, H, W)."""
        sigma = sigma if self.noise_aware else None
        observed = check_observation(observed, mask, self.in_chans, sigma)
        if not len(observed):
            return observed  # an empty batch, of which PyTorch's pixel shuffles make another shape
        start, x = self.entry(observed, mask, sigma)  # (B, C, H, W), (B, dim, H/2, W/2)
        for block in self.blocks:
            x = x + block(x)
        added = F.pixel_shuffle(self.exit(x), 2).float()  # (B, C, H, W)
        height, width = observed.shape[-2:]
        return keep_observed(start + added[..., :height, :width], observed, mask, sigma)
