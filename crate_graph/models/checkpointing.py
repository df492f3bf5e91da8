"""Activation checkpointing: recompute parts of the forward pass in the backward pass instead of keeping activations.

Bytes kept for the backward pass fall in the order none, block, layer, every_k; `crate_graph.ops.memory` counts them.
The peak adds what one recomputed segment needs, so every_k gains up to k near the square root of the depth at most.
"""

from __future__ import annotations

from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from crate_graph.errors import UserError
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.factory import architecture
from crate_graph.models.image_transformer import ImageTransformer

MODES = ("none", "layer", "block", "every_k")
STACKS = ("blocks", "decoder_blocks")  # attributes that hold layers in a row
WHITE_BOXES = (ImageTransformer, CRATEMAE)


def set_activation_checkpointing(model: nn.Module, mode: str, k: int = 2) -> None:
    """Recompute as `mode` says; gradients stay equal.

    none: keep everything. layer: each layer is a recomputed segment (every model for which timm offers it).
    block: each of the two steps of a layer is (CRATE and its relatives). every_k: k layers are (those, and timm's ViT).
    Graph networks: block recomputes each block whole, layer the CG solve of each ADMM layer.

    Raises UserError, naming the model and its modes, for a mode that the model lacks.
    """
    modes = available_modes(model)
    if mode not in modes:
        raise UserError(
            f"{architecture(model)} has no activation checkpointing {mode!r}; choose from {', '.join(map(repr, modes))}"
        )
    if _is_graph_network(model):
        model.checkpoint_blocks = mode == "block"
        for module in model.modules():
            if hasattr(module, "recompute"):
                module.recompute = mode == "layer"
        return
    if "layer" in modes:
        try:
            model.set_grad_checkpointing(mode == "layer")
        except AssertionError as error:  # timm gives the method to models that have nothing to recompute, too
            raise UserError(f"{architecture(model)}: {error}; choose 'none'") from error
    for name in STACKS if mode == "every_k" else ():
        if hasattr(model, name) and not isinstance(getattr(model, name), Segments):
            setattr(model, name, Segments(*getattr(model, name)))
    for module in model.modules():
        if isinstance(module, Segments):
            module.layers_per_segment = k if mode == "every_k" else 0
        if hasattr(module, "checkpoint_steps"):
            module.checkpoint_steps = mode == "block"


def available_modes(model: nn.Module) -> tuple[str, ...]:
    """The modes of MODES that `model` has."""
    offered = {
        "none": True,
        "layer": hasattr(model, "set_grad_checkpointing") or _is_graph_network(model),
        "block": isinstance(model, WHITE_BOXES) or _is_graph_network(model),
        "every_k": isinstance(model, (*WHITE_BOXES, VisionTransformer)),  # those run their stacks as a whole
    }
    return tuple(mode for mode in MODES if offered[mode])


def _is_graph_network(model: nn.Module) -> bool:
    return hasattr(model, "checkpoint_blocks")


class Segments(nn.Sequential):
    """Layers in a row, of which each `layers_per_segment` are recomputed together; 0 recomputes nothing."""

    layers_per_segment = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.layers_per_segment:
            return super().forward(x)
        return checkpoint_seq(self, x, every=self.layers_per_segment, use_reentrant=False)
