"""CRATE-MAE: a white-box masked autoencoder. The decoder's layers are those of the encoder, run backwards.

Paper: arXiv 2404.02446 ("Masked completion via structured diffusion with white-box transformers"). An encoder layer is
CRATE's; it denoises the tokens against subspaces, then sparsifies them:

    Z_half = Z + MSSA(LN(Z))          Z_next = ISTA(LN(Z_half))          (`crate_graph.models.crate.CRATEBlock`)

Denoising is a step of structured diffusion, and the decoder takes it in reverse time, after an inverse of the sparse
coding:

    Y_half = E LN(Y)                  Y_next = Y_half - MSSA(LN(Y_half))                         (CRATEDecoderBlock)

Unlike a ViT-MAE the encoder sees a token for each patch: that of a hidden one is a learned mask token.
Published weights: `crate_graph.models.published`; the training task: `crate_graph.tasks.masked_autoencoding`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import checkpoint_seq
from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate import MSSA, CRATEBlock
from crate_graph.models.image_transformer import (
    ConvPatchEmbed,
    check_image,
    check_sizes,
    fit_positions,
    in_steps,
    tiled,
)


class CRATEDecoderBlock(nn.Module):
    """One layer of the decoder. Nothing is skipped around the linear step, and MSSA is subtracted."""

    def __init__(self, dim: int, num_heads: int, **dd: Any):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.dictionary = nn.Parameter(torch.empty(dim, dim, **dd))
        nn.init.kaiming_uniform_(self.dictionary)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mssa = MSSA(dim, num_heads, **dd)
        self.checkpoint_steps = False  # recompute each of the two steps in the backward pass

    def densify(self, y: Tensor) -> Tensor:
        return nn.functional.linear(self.norm1(y), self.dictionary)  # (B, N, D)

    def expand(self, y: Tensor) -> Tensor:
        return y - self.mssa(self.norm2(y))  # (B, N, D)

    def forward(self, y: Tensor) -> Tensor:
        return in_steps(y, self.densify, self.expand, recompute=self.checkpoint_steps)


class CRATEMAE(nn.Module):
    """Images (B, C, H, W) and a mask of their patches (B, N) -> the pixels of all patches (B, N, p q C).

    Patches count row by row, and the pixels of one lie as `to_patches` lays them.

    Args:
        depth, decoder_depth: layers of the encoder and of the decoder; None: as many as the encoder.
        eta, lambd: step size and sparsity weight of ISTA.
        norm_eps: of the norms behind encoder and decoder, as in the published sizes; inside the layers it is 1e-5.
        Others: as in timm's VisionTransformer.

    Raises UserError for an image, patch or head size that does not divide.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        decoder_depth: int | None = None,
        num_heads: int = 6,
        eta: float = 0.1,
        lambd: float = 0.5,
        norm_eps: float = 1e-6,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        decoder_depth = depth if decoder_depth is None else decoder_depth
        sizes = {"embed_dim": embed_dim, "depth": depth, "decoder_depth": decoder_depth, "num_heads": num_heads}
        check_sizes(patch_size, **sizes)
        if embed_dim % 4:
            raise UserError(f"embed_dim={embed_dim} is not a multiple of 4, which the position embedding needs")
        self.img_size, self.in_chans, self.embed_dim = to_2tuple(img_size), in_chans, embed_dim
        self.grad_checkpointing = False

        self.patch_embed = ConvPatchEmbed(to_2tuple(patch_size), in_chans, embed_dim, **dd)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.register_buffer("pos_embed", sine_positions(self.grid_size(*self.img_size), embed_dim, **dd))
        self.blocks = nn.Sequential(*(CRATEBlock(embed_dim, num_heads, eta, lambd, **dd) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps, **dd)
        self.decoder_blocks = nn.Sequential(
            *(CRATEDecoderBlock(embed_dim, num_heads, **dd) for _ in range(decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **dd)
        self.decoder_pred = nn.Linear(embed_dim, math.prod(self.patch_embed.patch_size) * in_chans, **dd)
        self._initialize()

    def _initialize(self) -> None:
        """As published: Xavier for what is linear, kaiming_uniform for the dictionaries, which are no layers."""
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across an image of height x width pixels. Raises UserError if patches do not tile it."""
        return tiled(height, width, self.patch_embed.patch_size)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on: positions are computed, so those of the patches stay as they are."""
        size = to_2tuple(img_size)
        like = {"device": self.pos_embed.device, "dtype": self.pos_embed.dtype}
        self.pos_embed, self.img_size = sine_positions(self.grid_size(*size), self.embed_dim, **like), size

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) and mask (B, N) -> class token and patch or mask tokens (B, 1 + N, D)."""
        check_image(x, self.in_chans, self.img_size)
        x = self.patch_embed(x)  # (B, N, D)
        if mask is not None:
            x = torch.where(mask.bool().unsqueeze(-1), self.mask_token.to(x.dtype), x)  # (B, N, D)
        return torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed  # (B, 1 + N, D)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the encoder makes of images (B, C, H, W): (B, 1 + N, D), class token first."""
        return self.norm(self._run(self.blocks, self.embed(x, mask)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, N): 1 where a patch is hidden; None hides none."""
        y = self._run(self.decoder_blocks, self.forward_features(x, mask))  # (B, 1 + N, D)
        return self.decoder_pred(self.decoder_norm(y[:, 1:]))  # (B, N, p q C)

    def _run(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        return checkpoint_seq(blocks, x, use_reentrant=False) if self.grad_checkpointing else blocks(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass; more modes: `crate_graph.models.checkpointing`."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "mask_token"}


def to_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) -> patches (B, N, p q C), row by row; inside a patch the channel is fastest."""
    B, C, H, W = images.shape
    p, q = patch_size
    patches = images.reshape(B, C, H // p, p, W // q, q).permute(0, 2, 4, 3, 5, 1)  # (B, H/p, W/q, p, q, C)
    return patches.reshape(B, -1, p * q * C)


def from_patches(patches: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `to_patches`: (B, N, p q C) -> images (B, C, H, W) of `size`."""
    (p, q), (H, W) = patch_size, size
    patches = patches.unflatten(1, (H // p, W // q)).unflatten(-1, (p, q, -1))  # (B, H/p, W/q, p, q, C)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, H, W)


def sine_positions(grid: tuple[int, int], dim: int, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """Fixed position embedding (1, 1 + N, D): sines and cosines of the column, then of the row; zeros for the class.

    As in MAE (arXiv 2111.06377), whose frequencies fall from 1 to 1 / 10000 in D / 4 steps.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    frequency = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # (D/4,)

    def waves(places: Tensor) -> Tensor:
        angles = torch.outer(places, frequency)  # (n, D/4)
        return torch.cat((angles.sin(), angles.cos()), dim=1)  # (n, D/2)

    across = waves(columns).expand(len(rows), -1, -1)  # (H/p, W/q, D/2)
    down = waves(rows).unsqueeze(1).expand(-1, len(columns), -1)
    patches = torch.cat((across, down), dim=-1).flatten(0, 1)  # (N, D)
    table = torch.cat((patches.new_zeros(1, dim), patches)).unsqueeze(0)
    return table.to(device=device or torch.get_default_device(), dtype=dtype or torch.get_default_dtype())


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: CRATEMAE) -> dict[str, Tensor]:
    """Fit weights of another image size to `model`: see `fit_positions`."""
    return fit_positions(state_dict, "pos_embed", model.pos_embed, model.grid_size(*model.img_size))
