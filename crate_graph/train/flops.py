"""How much arithmetic a model does, and how much the device could do."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from crate_graph.errors import UserError
from crate_graph.models import create_model

# Dense tensor-core peak in TFLOP/s for 16-bit inputs, from the vendor's data sheets.
_PEAK_16_BIT = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "V100": 125.0}


def forward_flops(name: str, kwargs: dict, num_classes: int, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    Counted by tracing the model on the meta device, so no memory is taken and nothing is computed.

    Raises:
        UserError: there is no such model, or it does not take such an image.
    """
    try:
        with torch.device("meta"):
            model = create_model(name, num_classes=num_classes, **kwargs).eval()
            image = torch.zeros(1, *image_shape)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    except Exception as error:  # whatever it is, only the arguments can be its cause
        reason = (str(error) or type(error).__name__).splitlines()[0]
        shape = "x".join(map(str, image_shape))
        raise UserError(
            f"model {name}, kwargs {kwargs}, image {shape}: {reason}; check model.name, model.kwargs and the sizes in "
            f"data.train_transform and data.eval_transform"
        ) from error
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision: str, stated_tflops: float | None) -> float | None:
    """FLOP/s that model FLOP utilisation is measured against: the recipe's figure, else a known GPU's, else None."""
    if stated_tflops is not None:
        return stated_tflops * 1e12
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for gpu, tflops in _PEAK_16_BIT.items() if gpu in name), None)
