"""What CRATE and its relatives share with timm's VisionTransformer: tokens of an image, layers, a pooled head.

A subclass builds its own patch embedding and layers; here are the calls that timm's users know, so that each model's
file holds its mathematics and little else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import global_pool_nlc, resample_abs_pos_embed, to_2tuple
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate_graph.errors import UserError

POOLS = ("token", "avg", "")


class ConvPatchEmbed(nn.Module):
    """Patches through one convolution that does not overlap, with a bias."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, **dd: Any):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, D)


class ImageTransformer(nn.Module):
    """Images (B, C, H, W) -> logits (B, num_classes), by a class token and one token for each patch.

    Args:
        patch_embed: images -> (B, N, D), with an attribute `patch_size`.
        make_block: rate of stochastic depth -> a layer (B, 1 + N, D) -> (B, 1 + N, D).
        pool_include_prefix: average the class token too where global_pool is "avg".
        dynamic_img_size: take images of any size that the patches tile.
        positions: learn a position embedding; else `embed` is the subclass's.
        norm_eps: of the head's LayerNorm.
        dd: device and dtype.
        Others: as in timm's VisionTransformer.

    Raises UserError for an image, patch or head size that does not divide.
    """

    num_prefix_tokens = 1  # of those that the layers see

    def __init__(
        self,
        patch_embed: nn.Module,
        make_block: Callable[[float], nn.Module],
        *,
        depth: int,
        embed_dim: int,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        pool_include_prefix: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        positions: bool = True,
        norm_eps: float = 1e-5,
        dd: dict[str, Any],
    ):
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.pool_include_prefix = pool_include_prefix
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        self.img_size = to_2tuple(img_size)
        self.patch_embed = patch_embed
        num_tokens = 1 + math.prod(self.grid_size(*self.img_size))
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim, **dd))
        if positions:
            self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, embed_dim, **dd))
        self.blocks = nn.Sequential(*(make_block(drop_path_rate * i / max(depth - 1, 1)) for i in range(depth)))
        reduction = max(patch_embed.patch_size)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes else nn.Identity()

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across an image of height x width pixels. Raises UserError if patches do not tile it."""
        return tiled(height, width, self.patch_embed.patch_size)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> class token and patch tokens with positions (B, 1 + N, D)."""
        x = self._check_size(x)
        pos_embed = self.pos_embed  # (1, 1 + N, D)
        if self.dynamic_img_size:
            pos_embed = resample_abs_pos_embed(pos_embed, self.grid_size(*x.shape[-2:]), self.grid_size(*self.img_size))
        x = self.patch_embed(x)  # (B, N, D)
        return torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + pos_embed  # (B, 1 + N, D)

    def read_out(self, x: Tensor) -> Tensor:
        """What lies between the layers and the head: here nothing. Gives (B, 1 + N, D), class token first."""
        return x

    def _check_size(self, x: Tensor) -> Tensor:
        check_image(x, self.in_chans, None if self.dynamic_img_size else self.img_size)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> tokens of the last layer (B, 1 + N, D), class token first."""
        x = self.embed(x)
        if self.grad_checkpointing:
            return self.read_out(checkpoint_seq(self.blocks, x, use_reentrant=False))
        return self.read_out(self.blocks(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, 1 + N, D) -> logits (B, num_classes), or the pooled features (B, D) with pre_logits."""
        x = global_pool_nlc(x, self.global_pool, 1, self.pool_include_prefix)  # (B, D)
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
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
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
        return found if intermediates_only else (self.read_out(x), found)

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
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = {"device": self.cls_token.device, "dtype": self.cls_token.dtype}
        self.head = nn.Linear(self.embed_dim, num_classes, **like) if num_classes else nn.Identity()

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Take images of another size from now on: the position embedding is resampled (bicubic)."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_embed.patch_size:
            raise UserError("the patch size is fixed by the embedding; create the model with patch_size instead")
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


def in_steps(z: Tensor, *steps: Callable[[Tensor], Tensor], recompute: bool) -> Tensor:
    """The steps of a layer, one after the other; with `recompute` each is computed again in the backward pass."""
    for step in steps:
        z = checkpoint(step, z, use_reentrant=False) if recompute else step(z)
    return z


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known; choose from {', '.join(map(repr, choices))}")


def check_sizes(patch_size: int | tuple[int, int], **sizes: int) -> None:
    """Raise UserError where a size is no whole number of 1 or more, or where the heads do not divide the width."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} must be a whole number of 1 or more")
    if min(to_2tuple(patch_size)) < 1:
        raise UserError(f"patch_size={patch_size!r} must be 1 or more")
    embed_dim, num_heads = sizes["embed_dim"], sizes["num_heads"]
    if embed_dim % num_heads:
        raise UserError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}; change one of the two")


def check_image(x: Tensor, in_chans: int, img_size: tuple[int, int] | None) -> None:
    """Raise UserError where images (B, C, H, W) have other channels or, if `img_size` says one, another size."""
    channels, *size = x.shape[1:]
    if channels != in_chans:
        raise UserError(f"the model takes {in_chans} channels and the image has {channels}; set in_chans")
    if img_size is None or tuple(size) == img_size:
        return
    made, given = ("x".join(map(str, s)) for s in (img_size, size))
    raise UserError(
        f"the model is made for images of {made} pixels and was given {given}; "
        f"create it with img_size or dynamic_img_size=True, or call set_input_size"
    )


def tiled(height: int, width: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Patches down and across an image of height x width pixels. Raises UserError if patches do not tile it."""
    p, q = patch_size
    if height % p or width % q:
        near = f"{max(round(height / p), 1) * p}x{max(round(width / q), 1) * q}"
        raise UserError(f"an image of {height}x{width} pixels is not divisible by patches of {p}x{q}; use {near}")
    return height // p, width // q


def fit_positions(
    state_dict: dict[str, Tensor], name: str, positions: Tensor, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """Fit weights of another image size: the position embedding `name`, of a square image, is resampled to `grid`.

    `positions` is the model's own (1, 1 + N, D).

    Raises UserError where the image was no square.
    """
    source = state_dict.get(name)
    if source is None or source.shape[1] == positions.shape[1]:
        return state_dict
    patches = source.shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(
            f"the position embedding has {patches} patches, which is no square; load it at its own img_size, then call "
            f"set_input_size"
        )
    return {**state_dict, name: resample_abs_pos_embed(source, grid, (side, side))}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: ImageTransformer) -> dict[str, Tensor]:
    """What timm does to weights before it loads them: see `fit_positions`."""
    if not hasattr(model, "pos_embed"):
        return state_dict
    return fit_positions(state_dict, "pos_embed", model.pos_embed, model.grid_size(*model.img_size))
