"""The measures of CRATE and its relatives, and those of them that a ViT has, too.

Half-steps are caught at the input of `norm2`, which is Z^(l+1/2) in CRATE, in each of its relatives and in timm's
pre-norm blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
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
    variational_rate,
)
from crate_graph.models.crate import ISTA, MSSA, CRATEBlock
from crate_graph.models.crate_alpha import CRATEAlphaBlock, OvercompleteISTA
from crate_graph.models.crate_mae import CRATEDecoderBlock
from crate_graph.models.tost import TSSA, ToSTBlock
from crate_graph.ops.overcomplete import overcomplete_code
from crate_graph.ops.tssa import memberships

VIT_PARTS = ("query", "key", "value")  # in the order of timm's qkv
DECODER = "decoder_"  # before the names of what is measured of a decoder
WhiteBlock = CRATEBlock | CRATEAlphaBlock | CRATEDecoderBlock | ToSTBlock


def watch_crate(blocks: list[CRATEBlock], gathered: Gathered) -> Iterator[RemovableHandle]:
    """Hooks that measure each layer while the model runs."""
    for layer, block in enumerate(blocks, start=1):
        yield from _watch_steps(gathered, layer, block)


def watch_alpha(blocks: list[CRATEAlphaBlock], gathered: Gathered) -> Iterator[RemovableHandle]:
    """As for CRATE, and the code, which the layer decodes and adds to the tokens: it is computed once more."""

    def code(layer: int, ista: OvercompleteISTA, inputs: tuple[Tensor, ...]) -> None:
        found = overcomplete_code(inputs[0], ista.dictionary, ista.eta, ista.lambd)  # (B, N, 4 D)
        gathered.add("nonzero_code", (layer,), nonzero_fraction(found), "fraction")

    for layer, block in enumerate(blocks, start=1):
        yield from _watch_steps(gathered, layer, block)
        yield block.ista.register_forward_pre_hook(partial(code, layer))


def watch_decoder(blocks: list[CRATEDecoderBlock], gathered: Gathered) -> Iterator[RemovableHandle]:
    """As for CRATE; the half-step is Y^(l+1/2), before MSSA is taken away. Nothing makes tokens sparse."""
    for layer, block in enumerate(blocks, start=1):
        yield from _watch_steps(gathered, layer, block, prefix=DECODER, sparse=False)


def watch_tost(blocks: list[ToSTBlock], gathered: Gathered) -> Iterator[RemovableHandle]:
    """As for CRATE, and the variational rate, for which each token has a membership in each subspace."""

    def measure(name: str, layer: int, block: ToSTBlock, w: Tensor) -> Tensor:
        """w (B, K, N, p) -> memberships (B, K, N)."""
        membership = memberships(w, block.tssa.temperature)
        gathered.add(f"variational_rate_{name}", (layer,), variational_rate(unit_tokens(w), membership), "nats")
        return membership

    def attention_input(layer: int, block: ToSTBlock, _, __, output: Tensor) -> None:
        membership = measure("attention_input", layer, block, coordinates(output, block.tssa.num_heads))
        gathered.add("membership_entropy", (layer,), torch.special.entr(membership).sum(dim=1).mean(dim=1), "nats")

    def half_step(layer: int, block: ToSTBlock, _, inputs: tuple[Tensor, ...]) -> None:
        measure("half_step", layer, block, in_subspaces(inputs[0], block))

    def output(layer: int, block: ToSTBlock, _, z: Tensor) -> None:
        measure("output", layer, block, in_subspaces(z, block))

    for layer, block in enumerate(blocks, start=1):
        yield from _watch_steps(gathered, layer, block)
        yield block.tssa.subspaces.register_forward_hook(partial(attention_input, layer, block))
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
        _measure_tokens(gathered, "{}_half_step", layer, inputs[0])

    def output(layer: int, _, __, z: Tensor) -> None:
        _measure_tokens(gathered, "{}_output", layer, z)

    for layer, block in enumerate(blocks, start=1):
        yield block.attn.qkv.register_forward_hook(partial(attention_input, layer, block))
        yield block.norm2.register_forward_pre_hook(partial(half_step, layer, block))
        yield block.register_forward_hook(partial(output, layer))


def measure_white_box_weights(blocks: list[WhiteBlock], gathered: Gathered, prefix: str = "") -> None:
    """Of CRATE and its relatives: how near the subspaces are, and the dictionaries where there are some."""
    for layer, block in enumerate(blocks, start=1):
        attention = attention_of(block)
        _measure_coherence(gathered, prefix, "", layer, bases_of(attention.subspaces.weight, attention.num_heads))
        for name, dictionary in dictionaries_of(block).items():
            spectrum = singular_values(dictionary)
            gathered.add(f"{prefix}{name}_largest_singular_value", (layer,), spectrum[0], "1", "one")
            gathered.add(f"{prefix}{name}_smallest_singular_value", (layer,), spectrum[-1], "1", "one")
            gathered.add(f"{prefix}{name}_effective_rank", (layer,), effective_rank(spectrum), "dimensions", "one")
        if (step := getattr(block, "ista", None)) is not None:
            bound = ista_step_bound(step.dictionary.detach(), step.eta)
            gathered.add("ista_step_bound", (layer,), bound, "1", "one")


def measure_vit_weights(blocks: list[Block], gathered: Gathered) -> None:
    for layer, block in enumerate(blocks, start=1):
        for part, weight in zip(VIT_PARTS, block.attn.qkv.weight.chunk(3), strict=True):
            _measure_coherence(gathered, "", f"_{part}", layer, bases_of(weight, block.attn.num_heads))


def attention_of(block: WhiteBlock) -> MSSA | TSSA:
    """The attention of a layer, whose `subspaces` hold the bases U_k."""
    return block.tssa if isinstance(block, ToSTBlock) else block.mssa


def dictionaries_of(block: WhiteBlock) -> dict[str, Tensor]:
    """The dictionaries of a layer by the names of their measures: D, and of CRATE-alpha D', which decodes."""
    if isinstance(block, CRATEDecoderBlock):
        return {"dictionary": block.dictionary.detach()}
    if isinstance(block, ToSTBlock):
        return {}
    decoding = {"decoding": block.ista.decoder.detach()} if isinstance(block, CRATEAlphaBlock) else {}
    return {"dictionary": block.ista.dictionary.detach(), **decoding}


def in_subspaces(z: Tensor, block: WhiteBlock) -> Tensor:
    """U_k'Z of tokens (B, N, D) as they are, without the norm before attention and without a bias: (B, K, N, p)."""
    attention = attention_of(block)
    return coordinates(F.linear(z, attention.subspaces.weight), attention.num_heads)


def coordinates(w: Tensor, heads: int) -> Tensor:
    """(B, N, K p) -> (B, K, N, p)."""
    return w.unflatten(-1, (heads, -1)).transpose(1, 2)


def bases_of(weight: Tensor, heads: int) -> Tensor:
    """The K bases U_k in the rows of a projection: (K p, D) -> (K, D, p)."""
    return weight.detach().unflatten(0, (heads, -1)).mT


def is_pre_norm(block: nn.Module) -> bool:
    return type(block) is Block and hasattr(block.attn, "qkv")


def _watch_steps(
    gathered: Gathered, layer: int, block: WhiteBlock, prefix: str = "", sparse: bool = True
) -> Iterator[RemovableHandle]:
    """Rates and sparsity of what attention takes in, of the half-step and of the output; `prefix` begins the names."""

    def attention_input(attention: MSSA | TSSA, _, __, output: Tensor) -> None:
        rate = _rate(coordinates(output, attention.num_heads))
        gathered.add(f"{prefix}rc_attention_input", (layer,), rate, "nats")

    def half_step(_, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0]  # (B, N, D)
        gathered.add(f"{prefix}rc_half_step", (layer,), _rate(in_subspaces(z, block)), "nats")
        _measure_tokens(gathered, f"{prefix}{{}}_half_step", layer, z, sparse)

    def output(_, __, z: Tensor) -> None:
        given_subspaces = _rate(in_subspaces(z, block))
        gathered.add(f"{prefix}rc_output", (layer,), given_subspaces, "nats")
        rate = _measure_tokens(gathered, f"{prefix}{{}}_output", layer, z, sparse)
        if isinstance(getattr(block, "ista", None), ISTA):  # its output is the sparse code itself
            reduction = sparse_rate_reduction(rate, given_subspaces, z, block.ista.lambd)
            gathered.add("sparse_rate_reduction", (layer,), reduction, "nats")

    attention = attention_of(block)
    yield attention.subspaces.register_forward_hook(partial(attention_input, attention))
    yield block.norm2.register_forward_pre_hook(half_step)
    yield block.register_forward_hook(output)


def _rate(w: Tensor) -> Tensor:
    """(B, K, N, p) -> (B,)."""
    return rate_given_subspaces(unit_tokens(w))


def _measure_tokens(gathered: Gathered, name: str, layer: int, z: Tensor, sparse: bool = True) -> Tensor:
    """z (B, N, D) -> its coding rate (B,). `name` has a place for that of the measure."""
    rate = coding_rate(unit_tokens(z))
    gathered.add(name.format("coding_rate"), (layer,), rate, "nats")
    if sparse:
        gathered.add(name.format("nonzero"), (layer,), nonzero_fraction(z), "fraction")
    return rate


def _measure_coherence(gathered: Gathered, prefix: str, suffix: str, layer: int, bases: Tensor) -> None:
    """bases (K, D, p). One head has no pair."""
    first, second = (~bases.new_ones(len(bases), len(bases), dtype=bool).tril()).nonzero(as_tuple=True)
    if not len(first):
        return
    cosines = coherence(bases)[first, second]  # (K (K - 1) / 2,)
    overlap = coherence(bases, "frobenius")[first, second]
    gathered.add(f"{prefix}coherence{suffix}", (layer,), cosines, "cosine", "pairs")
    gathered.add(f"{prefix}coherence_largest{suffix}", (layer,), cosines.max(), "cosine", "one")
    gathered.add(f"{prefix}overlap{suffix}", (layer,), overlap, "cosine", "pairs")
