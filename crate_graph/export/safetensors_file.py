"""One safetensors file: the weights, and in its metadata all that rebuilds the model."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from crate_graph.errors import UserError
from crate_graph.export.source import Source
from crate_graph.models import create_model

TOLERANCE = 1e-5
FORMAT = "crate-graph-model/1"


def write(source: Source, path: Path) -> None:
    """Metadata values are text; all but `format`, `architecture` and `recipe` are JSON."""
    metadata = {
        "format": FORMAT,
        "architecture": source.architecture,
        "model_args": json.dumps({**source.model_args, "num_classes": source.num_classes}),
        "classes": json.dumps(source.classes),
        "mean": json.dumps(source.mean),
        "std": json.dumps(source.std),
        "eval_transform": source.transform.model_dump_json(),
        "recipe": source.recipe,
        "dataset": source.dataset,
        "step": json.dumps(source.step),
        "metrics": json.dumps(source.metrics),
    }
    save_file(source.weights(), path, metadata=metadata)


def load_safetensors(path: Path | str) -> nn.Module:
    """The model in eval mode. Raises UserError if `path` is not a file that this module wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); export the checkpoint again") from None
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} does not say how to build its model (metadata format is {metadata.get('format')!r}, not "
            f"{FORMAT!r}); use a file made by crate-graph export --format safetensors"
        )
    model = create_model(metadata["architecture"], **json.loads(metadata["model_args"]))
    model.load_state_dict(weights)
    return model.eval()


reload = load_safetensors
