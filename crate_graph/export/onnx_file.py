"""One ONNX file: input "image" (batch, C, H, W), output "logits" (batch, K), any batch size.

Exported through torch.export, which prints no warnings; on a small ViT it gives half the nodes of the older tracer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from crate_graph.errors import UserError
from crate_graph.export.parity import example_images
from crate_graph.export.source import Source

TOLERANCE = 1e-5
OPSET = 18
MAX_BYTES = 2**31 - 1  # of one protocol buffer


def write(source: Source, path: Path) -> None:
    """Metadata: classes, mean, std and eval_transform as JSON, recipe, dataset and step as text."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())
    if size > MAX_BYTES:
        raise UserError(
            f"the model holds {size / 2**30:.1f} GiB, and an ONNX file 2; export --format safetensors instead"
        )
    program = torch.onnx.export(
        source.model,
        (example_images(source),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    model = program.model_proto
    forget_the_source_code(model)
    metadata = {
        "classes": json.dumps(source.classes),
        "mean": json.dumps(source.mean),
        "std": json.dumps(source.std),
        "eval_transform": source.transform.model_dump_json(),
        "architecture": source.architecture,
        "recipe": source.recipe,
        "dataset": source.dataset,
        "step": str(source.step),
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def reload(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def forget_the_source_code(model: onnx.ModelProto) -> None:
    """The exporter notes for each node the stack trace that made it, with the paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
