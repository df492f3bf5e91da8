"""CRATE: a transformer whose layers unroll the optimisation of sparse rate reduction.

Papers: arXiv 2306.01129 (NeurIPS 2023), 2311.13110 (long form), 2308.16271 ("Emergence of Segmentation"). Each layer
takes two steps on the tokens Z:

    Z_half = Z + MSSA(LN(Z))        compress the tokens against K learned subspaces     (CRATEBlock.compress)
    Z_next = ISTA(LN(Z_half))       one proximal step towards a sparse code             (CRATEBlock.sparsify)

The interface is that of timm's VisionTransformer: `crate_graph.models.image_transformer`. Sizes:
`crate_graph.models.sizes`; published weights: `crate_graph.models.published`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, to_2tuple
from torch import Tensor, nn

from crate_graph.models.image_transformer import (
    ConvPatchEmbed,
    ImageTransformer,
    check_choice,
    check_sizes,
    checkpoint_filter_fn,
    in_steps,
)
from crate_graph.ops.ista import ACTIVATIONS, ista
from crate_graph.ops.mssa import mssa

__all__ = ["CRATE", "CRATEBlock", "ISTA", "MSSA", "PatchEmbed", "checkpoint_filter_fn"]  # timm looks for the last here

RESIDUALS = ("pre_norm", "norm_on_skip")


class MSSA(nn.Module):
    """Multi-head subspace self-attention: `subspaces` holds the K bases U_k, `proj` maps back to the tokens' space.

    The derivation ties `proj` to the bases; the published model learns it apart, with a bias, and so does this one.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, **dd: Any):
        super().__init__()
        self.num_heads = num_heads
        self.subspaces = nn.Linear(dim, dim, bias=False, **dd)
        self.proj = nn.Linear(dim, dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        w = self.subspaces(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, K, N, p)
        return self.proj(mssa(w).transpose(1, 2).flatten(2))  # (B, N, D)


class ISTA(nn.Module):
    """One proximal gradient step of the lasso with a learned complete dictionary; eta and lambda are fixed."""

    def __init__(self, dim: int, eta: float = 0.1, lambd: float = 0.1, activation: str = "relu", **dd: Any):
        super().__init__()
        self.eta, self.lambd, self.activation = eta, lambd, activation
        self.dictionary = nn.Parameter(torch.empty(dim, dim, **dd))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x: Tensor) -> Tensor:
        return ista(x, self.dictionary, self.eta, self.lambd, self.activation)  # (B, N, D)

    def extra_repr(self) -> str:
        return f"dim={len(self.dictionary)}, eta={self.eta}, lambd={self.lambd}, activation={self.activation}"


class CRATEBlock(nn.Module):
    """One layer: an MSSA half-step, then an ISTA step.

    Stochastic depth drops the MSSA half-step only. ISTA is no residual branch: the identity inside it belongs to the
    proximal step, and skipping it would hand the next layer tokens that are neither sparse nor non-negative.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        eta: float = 0.1,
        lambd: float = 0.1,
        activation: str = "relu",
        residual: str = "pre_norm",
        drop_path: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mssa = MSSA(dim, num_heads, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.ista = ISTA(dim, eta, lambd, activation, **dd)
        self.norm_on_skip = residual == "norm_on_skip"
        self.checkpoint_steps = False  # recompute each of the two steps in the backward pass

    def compress(self, z: Tensor) -> Tensor:
        """Z + MSSA(LN(Z)), the published code; LN(Z) + MSSA(LN(Z)) with norm_on_skip, 2308.16271's algorithm 1."""
        x = self.norm1(z)  # (B, N, D)
        return (x if self.norm_on_skip else z) + self.drop_path(self.mssa(x))  # (B, N, D)

    def sparsify(self, z: Tensor) -> Tensor:
        return self.ista(self.norm2(z))  # (B, N, D)

    def forward(self, z: Tensor) -> Tensor:
        return in_steps(z, self.compress, self.sparsify, recompute=self.checkpoint_steps)


class PatchEmbed(nn.Module):
    """Flat patches, channel fastest, through LayerNorm, Linear, LayerNorm."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, **dd: Any):
        super().__init__()
        self.patch_size = patch_size
        patch_dim = patch_size[0] * patch_size[1] * in_chans
        self.norm_in = nn.LayerNorm(patch_dim, **dd)
        self.proj = nn.Linear(patch_dim, embed_dim, **dd)
        self.norm_out = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        p, q = self.patch_size
        x = x.reshape(B, C, H // p, p, W // q, q).permute(0, 2, 4, 3, 5, 1)  # (B, H/p, W/q, p, q, C)
        return self.norm_out(self.proj(self.norm_in(x.flatten(3).flatten(1, 2))))  # (B, N, D)


PATCH_EMBEDS = {"linear": PatchEmbed, "conv": ConvPatchEmbed}


class CRATE(ImageTransformer):
    """White-box transformer for images (B, C, H, W) -> logits (B, num_classes).

    Args beyond those of timm's VisionTransformer:
        eta, lambd: step size and sparsity weight of ISTA.
        activation: "relu" (published) or "soft_threshold" (the "crate-sth" variant of arXiv 2308.16271).
        residual: "pre_norm" (published code) or "norm_on_skip" (that paper's algorithm); see `CRATEBlock.compress`.
        patch_embed: "linear" (published: LayerNorm, Linear, LayerNorm) or "conv", as the encoder of CRATE-MAE has it.
        pool_include_prefix: average the class token too where global_pool is "avg", as published.

    Raises UserError for an image, patch or head size that does not divide.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        eta: float = 0.1,
        lambd: float = 0.1,
        activation: str = "relu",
        residual: str = "pre_norm",
        patch_embed: str = "linear",
        pool_include_prefix: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("residual", residual, RESIDUALS)
        check_choice("patch_embed", patch_embed, tuple(PATCH_EMBEDS))
        check_sizes(patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        ista_step = {"eta": eta, "lambd": lambd, "activation": activation}
        super().__init__(
            PATCH_EMBEDS[patch_embed](to_2tuple(patch_size), in_chans, embed_dim, **dd),
            lambda rate: CRATEBlock(embed_dim, num_heads, **ista_step, residual=residual, drop_path=rate, **dd),
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
            dd=dd,
        )
