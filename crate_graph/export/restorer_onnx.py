"""A restoration network as one ONNX file, for pictures of any size and any number of them.

Inputs: "observed" and "mask" (batch, C, H, W); a noise-aware network also has "sigma" (batch,), where white is 1.
Output: "estimate" (batch, C, H, W). The metadata's "description" is that of the safetensors file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from crate_graph.errors import UserError
from crate_graph.export.onnx_file import OPSET, forget_the_source_code
from crate_graph.export.parity import example_observation
from crate_graph.export.restorer import Restorer

TOLERANCE = 1e-4  # an unrolled solver repeats its rounding errors some hundred times


def write(restorer: Restorer, path: Path) -> None:
    """Raises UserError for a network whose graph is built for one size of picture: uglr, ugtv and their kin."""
    aware = getattr(restorer.model, "noise_aware", False)
    observation = example_observation(restorer, 24, 32)
    inputs = observation if aware else observation[:2]
    batch, auto = torch.export.Dim("batch"), torch.export.Dim.AUTO
    picture = {0: batch, 2: auto, 3: auto}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on operations that it traces anyway
            program = torch.onnx.export(
                _Positional(restorer.model).eval(),
                inputs,
                dynamo=True,
                input_names=["observed", "mask", "sigma"][: len(inputs)],
                output_names=["estimate"],
                dynamic_shapes=((picture, picture, {0: batch})[: len(inputs)],),
                opset_version=OPSET,
                verbose=False,
            )
    except OnnxExporterError:
        raise UserError(
            f"{restorer.architecture}: the ONNX exporter cannot trace it for pictures of any size; use --format "
            f"safetensors, which crate-graph restore loads"
        ) from None
    model = program.model_proto
    forget_the_source_code(model)
    onnx.helper.set_model_props(model, {"description": restorer.describe()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def reload(path: Path) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def estimate(observed: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
        given = {"observed": observed.numpy(), "mask": mask.numpy(), "sigma": sigma.numpy()}
        return torch.from_numpy(session.run(["estimate"], {name: given[name] for name in names})[0])

    return estimate


class _Positional(nn.Module):
    """Any number of inputs, so that one that the network does not use is not one of the file's."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)
