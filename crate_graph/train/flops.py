"""How much arithmetic a model does, and how much the device could do."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crate_graph.errors import UserError
from crate_graph.models import create_model
from crate_graph.models.restorers import is_restorer

# Dense tensor-core peak in TFLOP/s for 16-bit inputs, from the vendor's data sheets.
_PEAK_16_BIT = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "V100": 125.0,
}


def passes_of_training(freeze: str) -> int:
    """Arithmetic of a training step over that of its forward pass; `freeze` is `model.freeze`.

    The backward pass computes two products for each of the forward pass; hardly any where the head alone learns.
    """
    return 1 if freeze == "backbone" else 3


def forward_flops(name: str, kwargs: dict, image_shape: tuple[int, int, int], images: int = 1) -> float:
    """As `count_flops`, of a model that is not built yet: it takes no memory.

    Args:
        name, kwargs: of `create_model`.

    Raises:
        UserError: there is no such model, or it does not take such an image.
    """
    try:
        with torch.device("meta"):
            model = create_model(name, **kwargs).eval()
        return count_flops(model, image_shape, images, restores=is_restorer(name))
    except Exception as error:  # whatever it is, only the arguments can be its cause
        reason = (str(error) or type(error).__name__).splitlines()[0]
        shape = "x".join(map(str, image_shape))
        raise UserError(
            f"model {name}, arguments {kwargs}, image {shape}: {reason}; check model.name, model.kwargs and the size "
            f"of images: data.train_transform and data.eval_transform, or data.patch"
        ) from error


def count_flops(
    model: nn.Module, image_shape: tuple[int, int, int], images: int = 1, *, restores: bool = False
) -> float:
    """Floating-point operations of the forward pass for each image (C, H, W); a multiply-add counts as two.

    `model` is on the meta device, so nothing is computed. The trace sees matrix products and convolutions; what else
    costs, a model adds by its method `graph_flops(height, width)`.

    Args:
        images: that pass together. They share what depends on weights alone, as the matrix M of CRATE's ISTA, which is
            made where the tokens are many.
        restores: whether the model takes a mask beside the image.
    """
    image = torch.zeros(images, *image_shape, device="meta")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image, image) if restores else model(image)
    own = model.graph_flops(*image_shape[1:]) if hasattr(model, "graph_flops") else 0
    return counter.get_total_flops() / images + own


def peak_flops(device: torch.device, precision: str, stated_tflops: float | None) -> float | None:
    """FLOP/s that model FLOP utilisation is measured against: the recipe's figure, else a known GPU's, else None."""
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for gpu, tflops in _PEAK_16_BIT.items() if gpu in name), None)
