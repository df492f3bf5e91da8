"""CRATE: a transformer whose layers unroll the optimisation of sparse rate reduction.

Papers: arXiv 2306.01129 (NeurIPS 2023), 2311.13110 (long form), 2308.16271 ("Emergence of Segmentation"). Each layer
takes two steps on the tokens Z:

    Z_half = Z + MSSA(LN(Z))        compress the tokens against K learned subspaces     (CRATEBlock.compress)
    Z_next = ISTA(LN(Z_half))       one proximal step towards a sparse code             (CRATEBlock.sparsify)

The interface is that of timm's VisionTransformer. Sizes: `crate_graph.models.sizes`; published weights:
`crate_graph.models.published`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, global_pool_nlc, resample_abs_pos_embed, to_2tuple
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate_graph.errors import UserError
from crate_graph.ops.ista import ACTIVATIONS, ista
from crate_graph.ops.mssa import mssa

POOLS = ("token", "avg", "")
RESIDUALS = ("pre_norm", "norm_on_skip")


class MSSA(nn.Module):
    """Multi-head subspace self-attention: `subspaces` holds the K bases U_k, `proj` maps back to the tokens' space.

    The derivation ties `proj` to the bases; the published model learns it apart, with a bias, and so does this one.
    """

    def __init__(self, dim: int, num_heads: int, **dd: Any):
        super().__init__()
        self.num_heads = num_heads
        self.subspaces = nn.Linear(dim, dim, bias=False, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

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
        if self.checkpoint_steps:
            z = checkpoint(self.compress, z, use_reentrant=False)
            return checkpoint(self.sparsify, z, use_reentrant=False)
        return self.sparsify(self.compress(z))


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


class CRATE(nn.Module):
    """White-box transformer for images (B, C, H, W) -> logits (B, num_classes).

    Args beyond those of timm's VisionTransformer:
        eta, lambd: step size and sparsity weight of ISTA.
        activation: "relu" (published) or "soft_threshold" (the "crate-sth" variant of arXiv 2308.16271).
        residual: "pre_norm" (published code) or "norm_on_skip" (that paper's algorithm); see `CRATEBlock.compress`.
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
        pool_include_prefix: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        _check_choice("global_pool", global_pool, POOLS)
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("residual", residual, RESIDUALS)
        for name, value in {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name}={value!r} must be a whole number of 1 or more")
        if min(to_2tuple(patch_size)) < 1:
            raise UserError(f"patch_size={patch_size!r} must be 1 or more")
        if embed_dim % num_heads:
            raise UserError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}; change one of the two")

        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.pool_include_prefix = pool_include_prefix
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        self.img_size = to_2tuple(img_size)
        self.patch_embed = PatchEmbed(to_2tuple(patch_size), in_chans, embed_dim, **dd)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim, **dd))
        num_tokens = self.num_prefix_tokens + math.prod(self.grid_size(*self.img_size))
        self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, embed_dim, **dd))

        self.blocks = nn.Sequential(
            *(
                CRATEBlock(
                    embed_dim,
                    num_heads,
                    eta=eta,
                    lambd=lambd,
                    activation=activation,
                    residual=residual,
                    drop_path=drop_path_rate * i / max(depth - 1, 1),
                    **dd,
                )
                for i in range(depth)
            )
        )
        reduction = max(self.patch_embed.patch_size)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]

        self.fc_norm = nn.LayerNorm(embed_dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes else nn.Identity()

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across an image of height x width pixels. Raises UserError if patches do not tile it."""
        p, q = self.patch_embed.patch_size
        if height % p or width % q:
            near = f"{max(round(height / p), 1) * p}x{max(round(width / q), 1) * q}"
            raise UserError(f"an image of {height}x{width} pixels is not divisible by patches of {p}x{q}; use {near}")
        return height // p, width // q

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> class token and patch tokens with positions (B, 1 + N, D)."""
        x = self._check_size(x)
        pos_embed = self.pos_embed  # (1, 1 + N, D)
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(pos_embed, self.grid_size(*x.shape[-2:]), self.grid_size(*self.img_size))
        x = self.patch_embed(x)  # (B, N, D)
        return torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + pos_embed  # (B, 1 + N, D)

    def _check_size(self, x: Tensor) -> Tensor:
        channels, *size = x.shape[1:]
        if channels != self.in_chans:
            raise UserError(f"the model takes {self.in_chans} channels and the image has {channels}; set in_chans")
        if self.dynamic_img_size or tuple(size) == self.img_size:
            return x
        made, given = ("x".join(map(str, s)) for s in (self.img_size, size))
        raise UserError(
            f"the model is made for images of {made} pixels and was given {given}; "
            f"create it with img_size or dynamic_img_size=True, or call set_input_size"
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> sparse codes of the last layer (B, 1 + N, D), class token first."""
        x = self.embed(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x, use_reentrant=False)
        return self.blocks(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, 1 + N, D) -> logits (B, num_classes), or the pooled features (B, D) with pre_logits."""
        x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens, self.pool_include_prefix)  # (B, D)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Outputs of chosen layers, as timm's VisionTransformer gives them.

        Args:
            indices: the last n layers, these layers, or all (None).
            return_prefix_tokens: give pairs (patch tokens, class token (B, 1, D)).
            norm: pass the tokens through the head's LayerNorm.
            stop_early: do not run the layers after the last chosen one.
            output_fmt: "NCHW" -> (B, D, H/p, W/p), "NLC" -> (B, N, D).
            intermediates_only: leave out the tokens for `forward_head` (B, 1 + N, D), which come first otherwise.
        """
        _check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        wanted, last = feature_take_indices(len(self.blocks), indices)
        grid = self.grid_size(*x.shape[-2:])
        x = self.embed(x)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
            if i in wanted:
                found.append(self.fc_norm(x) if norm else x)  # (B, 1 + N, D)

        prefix = [y[:, : self.num_prefix_tokens] for y in found]
        found = [y[:, self.num_prefix_tokens :] for y in found]
        if output_fmt == "NCHW":
            found = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in found]
        if return_prefix_tokens:
            found = list(zip(found, prefix, strict=True))
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates(indices=...)` does not need; return the layers as absolute indices."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.fc_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; num_classes=0 leaves the features."""
        if global_pool is not None:
            _check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = {"device": self.pos_embed.device, "dtype": self.pos_embed.dtype}
        self.head = nn.Linear(self.embed_dim, num_classes, **like) if num_classes else nn.Identity()

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Take images of another size from now on: the position embedding is resampled (bicubic)."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_embed.patch_size:
            raise UserError("CRATE's patch size is fixed by its embedding; create the model with patch_size instead")
        old, self.img_size = self.img_size, to_2tuple(img_size or self.img_size)
        grid = self.grid_size(*self.img_size)
        with torch.no_grad():
            resampled = resample_abs_pos_embed(self.pos_embed, grid, self.grid_size(*old))
        self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass; more modes: `crate_graph.models.checkpointing`."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^fc_norm", (99999,))],
        }


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known to CRATE; choose from {', '.join(map(repr, choices))}")


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: CRATE) -> dict[str, Tensor]:
    """Fit weights of another image size to `model`: the position embedding, of a square image, is resampled."""
    source, target = state_dict.get("pos_embed"), model.pos_embed
    if source is None or source.shape[1] == target.shape[1]:
        return state_dict
    side = math.isqrt(source.shape[1] - model.num_prefix_tokens)
    if side * side != source.shape[1] - model.num_prefix_tokens:
        raise UserError(
            f"the position embedding has {source.shape[1] - model.num_prefix_tokens} patches, which is no square; "
            f"load it at its own img_size, then call set_input_size"
        )
    return {**state_dict, "pos_embed": resample_abs_pos_embed(source, model.grid_size(*model.img_size), (side, side))}
