"""A restoration network as one safetensors file: the weights, and in its metadata the description that rebuilds it.

`crate-graph restore FILE photo.png --output DIR` loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crate_graph.errors import UserError
from crate_graph.export.restorer import FORMAT, Restorer, rebuild
from crate_graph.tasks.restoration import estimate

TOLERANCE = 1e-6


def write(restorer: Restorer, path: Path) -> None:
    save_file(restorer.weights(), path, metadata={"format": FORMAT, "description": restorer.describe()})


def load_restorer_file(path: Path) -> Restorer:
    """The restorer of a file that `write` wrote.

    Raises:
        UserError: another file.
    """
    metadata, weights = read_tensors(path)
    if metadata.get("format") == "crate-graph-model/1":
        raise UserError(f"{path}: a classification model; name a file exported from a restoration checkpoint")
    return rebuild(metadata.get("description", ""), weights, path)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises UserError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); export the checkpoint again") from None


def reload(path: Path) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    model = load_restorer_file(path).model
    return lambda observed, mask, sigma: estimate(model, observed, mask, sigma)
