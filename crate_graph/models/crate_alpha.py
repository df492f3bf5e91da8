"""CRATE-alpha: CRATE with an overcomplete, decoupled dictionary and a residual connection around it.

Paper: arXiv 2405.20299 ("Scaling white-box transformers for vision"). Each layer takes two steps on the tokens Z:

    Z_half = Z + MSSA(LN(Z))              compress, as in CRATE                              (CRATEAlphaBlock.compress)
    Z_next = Z_half + D' A(LN(Z_half))    A: two proximal steps towards a sparse code of     (CRATEAlphaBlock.sparsify)
                                          width 4d over the dictionary D; D' decodes it

Three changes against CRATE, in the paper's words: an overcomplete dictionary, a decoupled one, a residual connection.
Sizes: `crate_graph.models.alpha_sizes`; published weights: `crate_graph.models.published`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, to_2tuple
from torch import Tensor, nn

from crate_graph.models.crate import MSSA
from crate_graph.models.image_transformer import (
    ConvPatchEmbed,
    ImageTransformer,
    check_sizes,
    checkpoint_filter_fn,
    in_steps,
)
from crate_graph.ops.overcomplete import overcomplete_ista

__all__ = ["CRATEAlpha", "CRATEAlphaBlock", "OvercompleteISTA", "checkpoint_filter_fn"]  # timm looks for the last here

OVERCOMPLETE = 4  # atoms of the dictionary over the width of the tokens
NORM_EPS = 1e-6  # of every LayerNorm, as trained


class OvercompleteISTA(nn.Module):
    """Two proximal steps of the lasso from a code of zeros, then the decoder; eta and lambda are fixed."""

    def __init__(self, dim: int, eta: float = 0.1, lambd: float = 0.1, **dd: Any):
        super().__init__()
        self.eta, self.lambd = eta, lambd
        self.dictionary = nn.Parameter(torch.empty(dim, OVERCOMPLETE * dim, **dd))
        self.decoder = nn.Parameter(torch.empty(dim, OVERCOMPLETE * dim, **dd))

    def forward(self, x: Tensor) -> Tensor:
        return overcomplete_ista(x, self.dictionary, self.decoder, self.eta, self.lambd)  # (B, N, D)

    def extra_repr(self) -> str:
        return f"dim={len(self.dictionary)}, eta={self.eta}, lambd={self.lambd}"


class CRATEAlphaBlock(nn.Module):
    """One layer. Both steps are residual branches, and stochastic depth may drop either."""

    def __init__(
        self, dim: int, num_heads: int, eta: float = 0.1, lambd: float = 0.1, drop_path: float = 0.0, **dd: Any
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mssa = MSSA(dim, num_heads, bias=False, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.ista = OvercompleteISTA(dim, eta, lambd, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.checkpoint_steps = False  # recompute each of the two steps in the backward pass

    def compress(self, z: Tensor) -> Tensor:
        return z + self.drop_path(self.mssa(self.norm1(z)))  # (B, N, D)

    def sparsify(self, z: Tensor) -> Tensor:
        return z + self.drop_path(self.ista(self.norm2(z)))  # (B, N, D)

    def forward(self, z: Tensor) -> Tensor:
        return in_steps(z, self.compress, self.sparsify, recompute=self.checkpoint_steps)


class CRATEAlpha(ImageTransformer):
    """CRATE-alpha for images (B, C, H, W) -> logits (B, num_classes).

    Args beyond those of timm's VisionTransformer:
        eta, lambd: step size and sparsity weight of the proximal steps.
        head_norm_eps: of the head's LayerNorm. The weights were trained with 1e-6; the published PyTorch form of the
            model, made for inference, has 1e-5 there.

    Raises UserError for an image, patch or head size that does not divide.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        eta: float = 0.1,
        lambd: float = 0.1,
        head_norm_eps: float = NORM_EPS,
        pool_include_prefix: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        check_sizes(patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        super().__init__(
            ConvPatchEmbed(to_2tuple(patch_size), in_chans, embed_dim, **dd),
            lambda rate: CRATEAlphaBlock(embed_dim, num_heads, eta, lambd, rate, **dd),
            depth=depth,
            embed_dim=embed_dim,
            img_size=img_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            pool_include_prefix=pool_include_prefix,
            dynamic_img_size=dynamic_img_size,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            norm_eps=head_norm_eps,
            dd=dd,
        )
        self._initialize()

    def _initialize(self) -> None:
        """As the published JAX code: kaiming_uniform over the inputs of each dictionary and patch, normal elsewhere."""
        nn.init.kaiming_uniform_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            nn.init.normal_(block.mssa.subspaces.weight, std=0.02)
            nn.init.normal_(block.mssa.proj.weight, std=0.02)
            for dictionary in (block.ista.dictionary, block.ista.decoder):
                nn.init.kaiming_uniform_(dictionary, mode="fan_out")  # (d, 4d): PyTorch's "out" is d
        _initialize_head(self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; num_classes=0 leaves the features."""
        super().reset_classifier(num_classes, global_pool)
        _initialize_head(self.head)


def _initialize_head(head: nn.Module) -> None:
    if isinstance(head, nn.Linear):
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
