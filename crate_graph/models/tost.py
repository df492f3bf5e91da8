"""ToST, the token statistics transformer: attention by second moments, linear in the number of tokens.

Paper: arXiv 2412.17810. The attention TSSA is a gradient step on the variational form of the coding rate; its equation
stands in `crate_graph.ops.tssa`. Each layer takes two steps on the tokens Z, both scaled by learned vectors:

    Z_half = Z + gamma1 TSSA(LN(Z))           (ToSTBlock.compress)
    Z_next = Z_half + gamma2 MLP(LN(Z_half))  (ToSTBlock.transform)

What surrounds the layers is XCiT's (arXiv 2106.09681): a stem of convolutions, Fourier positions, and a class token
that attends to the patches in two layers of its own (CaiT, arXiv 2103.17239).

The stem has batch norms, as published. Their statistics in training are those of one forward pass, so a recipe's
numbers depend on its micro batch; between processes they are shared (`crate_graph.engine.batch_norm`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp, to_2tuple
from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.image_transformer import ImageTransformer, check_sizes, checkpoint_filter_fn, in_steps
from crate_graph.ops.tssa import tssa

__all__ = ["TSSA", "ToST", "ToSTBlock", "checkpoint_filter_fn"]  # timm looks for the last here

NORM_EPS = 1e-6
WAVES = 32  # sines and cosines for each of the two coordinates of a patch
MLP_RATIO = 4


class TSSA(nn.Module):
    """Token statistics self-attention: `subspaces` holds the K bases U_k, `proj` maps back to the tokens' space.

    The derivation ties `proj` to the bases; the published model learns it apart, with a bias, and so does this one.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, **dd: Any):
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, **dd))
        self.subspaces = nn.Linear(dim, dim, bias=bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        w = self.subspaces(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, K, N, p)
        return self.proj(tssa(w, self.temperature).transpose(1, 2).flatten(2))  # (B, N, D)


class ToSTBlock(nn.Module):
    """One layer; both steps are residual branches, and stochastic depth may drop either."""

    def __init__(
        self, dim: int, num_heads: int, scale: float, qkv_bias: bool = True, drop_path: float = 0.0, **dd: Any
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.tssa = TSSA(dim, num_heads, qkv_bias, **dd)
        self.gamma1 = nn.Parameter(torch.full((dim,), scale, **dd))
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = Mlp(dim, MLP_RATIO * dim, **dd)
        self.gamma2 = nn.Parameter(torch.full((dim,), scale, **dd))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.checkpoint_steps = False  # recompute each of the two steps in the backward pass

    def compress(self, z: Tensor) -> Tensor:
        return z + self.drop_path(self.gamma1 * self.tssa(self.norm1(z)))  # (B, N, D)

    def transform(self, z: Tensor) -> Tensor:
        return z + self.drop_path(self.gamma2 * self.mlp(self.norm2(z)))  # (B, N, D)

    def forward(self, z: Tensor) -> Tensor:
        return in_steps(z, self.compress, self.transform, recompute=self.checkpoint_steps)


class ClassAttention(nn.Module):
    """The class token, first of x (B, 1 + N, D), attends to all -> (B, 1, D)."""

    def __init__(self, dim: int, num_heads: int, bias: bool = True, **dd: Any):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, 1 + N, p)
        attended = nn.functional.scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, heads, 1, p)
        return self.proj(attended.transpose(1, 2).flatten(2))


class ClassAttentionBlock(nn.Module):
    """A layer behind the others in which the class token reads the patches; XCiT's form, where norms act on all tokens.

    The patches meet no attention: both of their branches are the norm before them.
    """

    def __init__(self, dim: int, num_heads: int, scale: float, qkv_bias: bool = True, **dd: Any):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.attn = ClassAttention(dim, num_heads, qkv_bias, **dd)
        self.gamma1 = nn.Parameter(torch.full((dim,), scale, **dd))
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = Mlp(dim, MLP_RATIO * dim, **dd)
        self.gamma2 = nn.Parameter(torch.full((dim,), scale, **dd))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)  # (B, 1 + N, D)
        x = self.norm2(x + self.gamma1 * torch.cat((self.attn(y), y[:, 1:]), dim=1))
        return x + torch.cat((self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]), dim=1)


class ConvStem(nn.Module):
    """Convolutions of stride 2, each with a batch norm and GELU in between, from the image down to its patches."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, **dd: Any):
        super().__init__()
        self.patch_size = patch_size
        stages = int(math.log2(patch_size[0])) if patch_size[0] > 0 else 0
        if patch_size != (2**stages, 2**stages) or not 1 <= stages <= 4:
            raise UserError(f"patch_size={patch_size}: ToST's stem halves images up to 4 times; use 2, 4, 8 or 16")
        if embed_dim % 2 ** (stages - 1):
            raise UserError(f"embed_dim={embed_dim} is not a multiple of {2 ** (stages - 1)}, which the stem needs")
        widths = [in_chans, *(embed_dim // 2**k for k in reversed(range(stages)))]
        layers: list[nn.Module] = []
        for width, wider in zip(widths, widths[1:]):  # noqa: B905 - pairs of neighbours
            convolution = nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False, **dd)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(wider, **dd)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, D, H/p, W/p)


class FourierPositions(nn.Module):
    """Sines and cosines of a patch's row and column, both scaled to (0, 2 pi], through a linear map."""

    def __init__(self, dim: int, **dd: Any):
        super().__init__()
        self.projection = nn.Conv2d(2 * WAVES, dim, 1, **dd)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(1, D, H/p, W/p) for a grid of that many patches."""
        weight = self.projection.weight
        down, across = (self._waves(n, weight.device) for n in grid)  # (H/p, WAVES), (W/p, WAVES)
        down, across = down.unsqueeze(1).expand(-1, grid[1], -1), across.expand(grid[0], -1, -1)
        waves = torch.cat((down, across), dim=-1).permute(2, 0, 1).unsqueeze(0)  # (1, 2 WAVES, H/p, W/p)
        return self.projection(waves.to(weight.dtype))

    @staticmethod
    def _waves(count: int, device: torch.device) -> Tensor:
        places = torch.arange(1, count + 1, dtype=torch.float32, device=device) / (count + 1e-6) * 2 * math.pi  # (n,)
        exponent = torch.arange(WAVES // 2, dtype=torch.float32, device=device) / (WAVES // 2)
        angles = places.unsqueeze(1) / 10_000**exponent  # (n, WAVES / 2)
        return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)  # (n, WAVES)


class ToST(ImageTransformer):
    """ToST for images (B, C, H, W) -> logits (B, num_classes).

    Positions are computed, so weights fit every image size that the patches tile.

    Args beyond those of timm's VisionTransformer:
        layer_scale: first value of gamma1 and gamma2; published 1 for 12 layers, 1e-5 for 24.
        qkv_bias: whether the projections into the subspaces, and the class attention's, have a bias.

    Raises UserError for an image, patch or head size that does not divide.
    """

    num_prefix_tokens = 0  # the class token joins after the layers

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 4,
        class_depth: int = 2,
        layer_scale: float = 1.0,
        qkv_bias: bool = True,
        pool_include_prefix: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        dd = {"device": device, "dtype": dtype}
        check_sizes(patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads, class_depth=class_depth)
        super().__init__(
            ConvStem(to_2tuple(patch_size), in_chans, embed_dim, **dd),
            lambda rate: ToSTBlock(embed_dim, num_heads, layer_scale, qkv_bias, rate, **dd),
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
            positions=False,
            norm_eps=NORM_EPS,
            dd=dd,
        )
        self.positions = FourierPositions(embed_dim, **dd)
        self.class_blocks = nn.Sequential(
            *(ClassAttentionBlock(embed_dim, num_heads, layer_scale, qkv_bias, **dd) for _ in range(class_depth))
        )
        self._initialize()

    def _initialize(self) -> None:
        """As XCiT, whose code the published model's is built on: normal of 0.02, cut off at 2."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialize_linear(module)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> patch tokens with positions (B, N, D)."""
        x = self._check_size(x)
        grid = self.grid_size(*x.shape[-2:])
        return (self.patch_embed(x) + self.positions(grid)).flatten(2).transpose(1, 2)  # (B, N, D)

    def read_out(self, x: Tensor) -> Tensor:
        """The class token reads the patches (B, N, D) -> (B, 1 + N, D)."""
        return self.class_blocks(torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; num_classes=0 leaves the features."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            _initialize_linear(self.head)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates(indices=...)` does not need; return the layers as absolute indices."""
        if prune_head:
            self.class_blocks = nn.Identity()
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Take images of another size from now on."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_embed.patch_size:
            raise UserError("the patch size is fixed by the stem; create the model with patch_size instead")
        size = to_2tuple(img_size or self.img_size)
        self.grid_size(*size)
        self.img_size = size

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", *(f"blocks.{i}.tssa.temperature" for i in range(len(self.blocks)))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^patch_embed|positions",
            "blocks": [
                (r"^blocks\.(\d+)", None),
                (r"^class_blocks\.(\d+)", (50_000,)),
                (r"^cls_token", (50_000,)),
                (r"^fc_norm", (99_999,)),
            ],
        }


def _initialize_linear(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
