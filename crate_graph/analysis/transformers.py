"""The measures of CRATE, and those of them that a ViT has, too.

Half-steps are caught at the input of `norm2`, which is Z^(l+1/2) in CRATE and in timm's pre-norm blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crate_graph.analysis.measured import Gathered
from crate_graph.measures.matrices import coherence, effective_rank, ista_step_bound, singular_values
from crate_graph.measures.rate import (
    coding_rate,
    nonzero_fraction,
    rate_given_subspaces,
    sparse_rate_reduction,
    unit_tokens,
)
from crate_graph.models.crate import CRATEBlock

VIT_PARTS = ("query", "key", "value")  # in the order of timm's qkv


def watch_crate(blocks: list[CRATEBlock], gathered: Gathered) -> Iterator[RemovableHandle]:
    """Hooks that measure each layer while the model runs."""

    def attention_input(layer: int, block: CRATEBlock, _, __, output: Tensor) -> None:
        gathered.add("rc_attention_input", (layer,), _rate(coordinates(output, block.mssa.num_heads)), "nats")

    def half_step(layer: int, block: CRATEBlock, _, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0]  # (B, N, D)
        gathered.add("rc_half_step", (layer,), _rate(in_subspaces(z, block)), "nats")
        _measure_tokens(gathered, "_half_step", layer, z)

    def output(layer: int, block: CRATEBlock, _, z: Tensor) -> None:
        given_subspaces = _rate(in_subspaces(z, block))
        gathered.add("rc_output", (layer,), given_subspaces, "nats")
        rate = _measure_tokens(gathered, "_output", layer, z)
        reduction = sparse_rate_reduction(rate, given_subspaces, z, block.ista.lambd)
        gathered.add("sparse_rate_reduction", (layer,), reduction, "nats")

    for layer, block in enumerate(blocks, start=1):
        yield block.mssa.subspaces.register_forward_hook(partial(attention_input, layer, block))
        yield block.norm2.register_forward_pre_hook(partial(half_step, layer, block))
        yield block.register_forward_hook(partial(output, layer))


def watch_vit(blocks: list[Block], gathered: Gathered) -> Iterator[RemovableHandle]:
    """As for CRATE, with the heads' projections to queries, keys and values each in the place of the subspaces."""

    def attention_input(layer: int, block: Block, _, __, output: Tensor) -> None:
        for part, w in zip(VIT_PARTS, output.chunk(3, dim=-1), strict=True):
            rate = _rate(coordinates(w, block.attn.num_heads))
            gathered.add(f"rc_attention_input_{part}", (layer,), rate, "nats")

    def half_step(layer: int, block: Block, _, inputs: tuple[Tensor, ...]) -> None:
        for part, weight in zip(VIT_PARTS, block.attn.qkv.weight.chunk(3), strict=True):
            w = coordinates(F.linear(inputs[0], weight), block.attn.num_heads)
            gathered.add(f"rc_half_step_{part}", (layer,), _rate(w), "nats")
        _measure_tokens(gathered, "_half_step", layer, inputs[0])

    def output(layer: int, _, __, z: Tensor) -> None:
        _measure_tokens(gathered, "_output", layer, z)

    for layer, block in enumerate(blocks, start=1):
        yield block.attn.qkv.register_forward_hook(partial(attention_input, layer, block))
        yield block.norm2.register_forward_pre_hook(partial(half_step, layer, block))
        yield block.register_forward_hook(partial(output, layer))


def measure_crate_weights(blocks: list[CRATEBlock], gathered: Gathered) -> None:
    for layer, block in enumerate(blocks, start=1):
        _measure_coherence(gathered, "", layer, bases_of(block.mssa.subspaces.weight, block.mssa.num_heads))
        dictionary = block.ista.dictionary.detach()
        spectrum = singular_values(dictionary)
        gathered.add("dictionary_largest_singular_value", (layer,), spectrum[0], "1", "one")
        gathered.add("dictionary_smallest_singular_value", (layer,), spectrum[-1], "1", "one")
        gathered.add("dictionary_effective_rank", (layer,), effective_rank(spectrum), "dimensions", "one")
        gathered.add("ista_step_bound", (layer,), ista_step_bound(dictionary, block.ista.eta), "1", "one")


def measure_vit_weights(blocks: list[Block], gathered: Gathered) -> None:
    for layer, block in enumerate(blocks, start=1):
        for part, weight in zip(VIT_PARTS, block.attn.qkv.weight.chunk(3), strict=True):
            _measure_coherence(gathered, f"_{part}", layer, bases_of(weight, block.attn.num_heads))


def in_subspaces(z: Tensor, block: CRATEBlock) -> Tensor:
    """U_k'Z of tokens (B, N, D) as they are, without the norm before attention: (B, K, N, p)."""
    return coordinates(F.linear(z, block.mssa.subspaces.weight), block.mssa.num_heads)


def coordinates(w: Tensor, heads: int) -> Tensor:
    """(B, N, K p) -> (B, K, N, p)."""
    return w.unflatten(-1, (heads, -1)).transpose(1, 2)


def bases_of(weight: Tensor, heads: int) -> Tensor:
    """The K bases U_k in the rows of a projection: (K p, D) -> (K, D, p)."""
    return weight.detach().unflatten(0, (heads, -1)).mT


def is_pre_norm(block: nn.Module) -> bool:
    return type(block) is Block and hasattr(block.attn, "qkv")


def _rate(w: Tensor) -> Tensor:
    """(B, K, N, p) -> (B,)."""
    return rate_given_subspaces(unit_tokens(w))


def _measure_tokens(gathered: Gathered, suffix: str, layer: int, z: Tensor) -> Tensor:
    """z (B, N, D) -> its coding rate (B,)."""
    rate = coding_rate(unit_tokens(z))
    gathered.add(f"coding_rate{suffix}", (layer,), rate, "nats")
    gathered.add(f"nonzero{suffix}", (layer,), nonzero_fraction(z), "fraction")
    return rate


def _measure_coherence(gathered: Gathered, suffix: str, layer: int, bases: Tensor) -> None:
    """bases (K, D, p). One head has no pair."""
    first, second = (~bases.new_ones(len(bases), len(bases), dtype=bool).tril()).nonzero(as_tuple=True)
    if not len(first):
        return
    cosines = coherence(bases)[first, second]  # (K (K - 1) / 2,)
    overlap = coherence(bases, "frobenius")[first, second]
    gathered.add(f"coherence{suffix}", (layer,), cosines, "cosine", "pairs")
    gathered.add(f"coherence_largest{suffix}", (layer,), cosines.max(), "cosine", "one")
    gathered.add(f"overlap{suffix}", (layer,), overlap, "cosine", "pairs")
