"""What the heads of one layer see in pictures: queries and keys of all tokens, which in CRATE are one and the same.

ToST compares no tokens. What stands for its attention is how far each token belongs to each head's subspace.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from crate_graph.analysis.layers import as_found
from crate_graph.analysis.subject import Subject
from crate_graph.analysis.transformers import attention_of, coordinates
from crate_graph.errors import UserError
from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.tost import ToSTBlock
from crate_graph.ops.tssa import memberships

MOST_TOKENS = 64 * 64  # of a picture: a normalised cut takes their cube
_BATCH = 8  # pictures at once


@dataclass(frozen=True)
class Heads:
    """Of B pictures of h x w patches, seen by the K heads of one layer, p dimensions each."""

    queries: Tensor  # (B, K, P + h w, p), tokens without a patch first
    keys: Tensor  # likewise
    prefix: int  # P
    grid: tuple[int, int]  # h, w
    has_class_token: bool
    memberships: Tensor | None = None  # of ToST, pi (B, K, h w), adds up to 1 over K
    white_box: bool = True  # queries and keys are the same coordinates U_k'z

    def attention(self) -> Tensor:
        """How the class token attends to the patches: softmax over them of <U_k'z_i, U_k'z_cls> / sqrt(p).

        Without a class token it is the mean over what all patches attend to. Of ToST it is the weight of each patch in
        the second moments of a subspace, pi_ki / sum_i pi_ki. (B, K, h, w), each map sums to 1.
        """
        if self.memberships is not None:
            return (self.memberships / self.memberships.sum(dim=-1, keepdim=True)).unflatten(-1, self.grid)
        patches = self.keys[:, :, self.prefix :]  # (B, K, hw, p)
        asking = self.queries[:, :, :1] if self.has_class_token else self.queries[:, :, self.prefix :]
        scores = asking @ patches.mT * patches.shape[-1] ** -0.5  # (B, K, 1 or hw, hw)
        return scores.softmax(dim=-1).mean(dim=2).unflatten(-1, self.grid)

    @property
    def features_in_words(self) -> str:
        return "the coordinates U_k'z of all heads" if self.white_box else "the keys of all heads"

    def features(self) -> Tensor:
        """The keys of all heads side by side, in CRATE and its relatives U_1'z .. U_K'z: (B, h w, K p)."""
        return self.keys[:, :, self.prefix :].transpose(1, 2).flatten(2)


def heads_at(subject: Subject, layer: int, images: Tensor) -> Heads:
    """The heads of a layer, counted from 1, on images (B, C, H, W); position embeddings are resized to their size.

    Raises:
        UserError: an image that the patches do not tile, or with more than MOST_TOKENS of them.
    """
    model = resized(subject, images.shape[-1])
    block = model.blocks[layer - 1]
    white = not isinstance(model, VisionTransformer)
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_, __, output: Tensor) -> None:
        if white:
            w = coordinates(output, attention_of(block).num_heads)  # (B, K, N, p)
            kept.append((w, w))
        else:
            query, key, _ = (coordinates(part, block.attn.num_heads) for part in output.chunk(3, dim=-1))
            kept.append((block.attn.q_norm(query), block.attn.k_norm(key)))

    source = attention_of(block).subspaces if white else block.attn.qkv
    handle = source.register_forward_hook(keep)
    try:
        with as_found(model):
            for part in images.split(_BATCH):
                model(part)
    finally:
        handle.remove()
    queries, keys = (torch.cat(parts) for parts in zip(*kept, strict=True))
    patch = model.patch_embed.patch_size
    grid = images.shape[-2] // patch[0], images.shape[-1] // patch[1]
    if isinstance(block, ToSTBlock):
        return Heads(queries, keys, 0, grid, False, memberships(keys, block.tssa.temperature.detach()))
    has_class_token = getattr(model, "cls_token", None) is not None
    return Heads(queries, keys, model.num_prefix_tokens, grid, has_class_token, white_box=white)


def resized(subject: Subject, size: int) -> nn.Module:
    """The model for pictures of `size` x `size` pixels; a copy, unless that is its own size."""
    patch = subject.model.patch_embed.patch_size
    if size % patch[0] or size % patch[1]:
        raise UserError(
            f"{subject.name}: a picture of {size} pixels is not divisible by patches of {patch[0]} x {patch[1]}; use "
            f"--size {max(round(size / patch[0]), 1) * patch[0]}"
        )
    if size // patch[0] * (size // patch[1]) > MOST_TOKENS:
        raise UserError(
            f"{subject.name}: a picture of {size} pixels is {size // patch[0] * (size // patch[1])} patches, and "
            f"maps are for {MOST_TOKENS} at most; choose a smaller --size"
        )
    if size == subject.view.size:
        return subject.model
    model = copy.deepcopy(subject.model)
    model.set_input_size((size, size))
    return model


def choose_layer(subject: Subject, asked: int | None) -> int:
    """The layer of the maps: as published, the last but one of CRATE and the last of a ViT (arXiv 2308.16271).

    For CRATE-alpha, and for the encoder of CRATE-MAE, as for CRATE; for ToST as for a ViT.

    Raises:
        UserError: there is no such layer.
    """
    depth = len(subject.model.blocks)
    if asked is not None and asked > depth:
        raise UserError(f"--layer {asked}: {subject.name} has {depth} layers; choose one from 1 to {depth}")
    return asked or (max(depth - 1, 1) if isinstance(subject.model, CRATE | CRATEAlpha | CRATEMAE) else depth)
