"""timm's vision transformer as a restoration network: the baseline with ordinary self-attention."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from crate_graph.models.observation import check_observation, interpolate_known, keep_observed
from crate_graph.models.tiles import restore_tiled


class ViTRestorer(nn.Module):
    """A ViT over the patches of a `size` x `size` tile; each token becomes what is added to the interpolation there.

    Larger pictures are restored tile by tile, with an overlap of half a tile.

    Args:
        in_chans: channels of the picture, 3 or 1.
        size: side of the tile that attention spans, in pixels; a multiple of the patch, even.
        patch_size: side of a patch.
        dim, depth, num_heads: of the transformer.
        noise_aware: take sigma; known values are then kept only where it is 0.
    """

    window = 5

    def __init__(
        self,
        in_chans: int = 3,
        size: int = 64,
        patch_size: int = 4,
        dim: int = 80,
        depth: int = 4,
        num_heads: int = 4,
        noise_aware: bool = False,
    ):
        super().__init__()
        self.in_chans, self.size, self.patch_size, self.noise_aware = in_chans, size, patch_size, noise_aware
        self.trunk = VisionTransformer(
            img_size=size,
            patch_size=patch_size,
            in_chans=2 * in_chans + 1,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            global_pool="",
            class_token=False,
        )
        self.exit = nn.Linear(dim, in_chans * patch_size**2)
        nn.init.zeros_(self.exit.weight)  # training starts from the interpolation
        nn.init.zeros_(self.exit.bias)

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None = None) -> Tensor:
        """observed, mask (B, C, H, W); sigma (B,), used where the network is noise aware. -> (B, C, H, W)."""
        sigma = sigma if self.noise_aware else None
        observed = check_observation(observed, mask, self.in_chans, sigma)
        if max(observed.shape[-2:]) > self.size:
            return restore_tiled(self, observed, mask, sigma, tile=self.size, overlap=self.size // 4 * 2)
        height, width = observed.shape[-2:]
        start = interpolate_known(observed, mask)  # (B, C, H, W)
        noise = observed.new_zeros(len(observed)) if sigma is None else sigma
        plane = noise.view(-1, 1, 1, 1).expand(-1, 1, height, width)
        seen = F.pad(torch.cat((start, mask, plane), dim=1), (0, self.size - width, 0, self.size - height))
        tokens = self.exit(self.trunk(seen))  # (B, tokens, C p^2)
        side = self.size // self.patch_size
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, C p^2, side, side)
        added = F.pixel_shuffle(maps, self.patch_size).float()[..., :height, :width]
        return keep_observed(start + added, observed, mask, sigma)
