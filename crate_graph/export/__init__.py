"""Write a checkpoint in a form that others read, and prove that what was written computes the same.

Each format is one module with the same three names:
    TOLERANCE            largest difference allowed, as a share of the largest output (or of 1, if that is larger)
    write(source, path)  writes a file or a folder
    reload(path)         reads it back the way a stranger would: a function of (B, C, H, W) images to (B, K) logits, or
                         of observed, mask and sigma to an estimate
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_graph.errors import UserError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FORMATS", "export", "load_safetensors"]

FORMATS = {"timm": "timm_folder", "hf": "huggingface", "safetensors": "safetensors_file", "onnx": "onnx_file"}
RESTORATION_FORMATS = {"safetensors": "restorer_safetensors", "onnx": "restorer_onnx"}
EXTRAS = {"hf": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}


def export(checkpoint: str, format: str, output: Path | str) -> dict[str, Any]:
    """Write `checkpoint` to `output` as timm folder, Hugging Face folder, safetensors file or ONNX file.

    The result is reloaded and compared with the checkpoint's model on a fixed seeded batch before it appears at
    `output`; until then it lies in a hidden folder beside it, which is removed on any failure.

    Returns format, output, architecture, max_difference (of the outputs), allowed_difference, and files: name -> bytes.
    Raises UserError for an unknown format, one that is not for the checkpoint's task, a missing optional package or an
    existing output or one that cannot be written; RuntimeError if the reloaded model differs.
    """
    output = Path(output)
    if format not in FORMATS:
        raise UserError(f"export format '{format}' is not known; choose one of {', '.join(FORMATS)}")
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; remove it or choose another --output")
    _require_extra(format)

    from crate_graph.checkpoint.manifest import read_manifest, task_of
    from crate_graph.checkpoint.store import resolve
    from crate_graph.export.parity import compare_estimates, compare_logits
    from crate_graph.export.restorer import read_restorer
    from crate_graph.export.source import read_checkpoint
    from crate_graph.export.staging import check_writable, staged

    check_writable(output)
    folder = resolve(checkpoint)
    kind = task_of(read_manifest(folder))["kind"]
    if kind == "masked_autoencoding":
        raise UserError(
            f"{folder}: a masked autoencoder, which is no classifier; fine-tune its encoder (model.init_from={folder}) "
            f"and export that, or write its weights: crate-graph checkpoint convert {folder} OUTPUT --to published"
        )
    if kind == "restoration":
        _refuse_for_restoration(folder, format)
        source, formats, compare = read_restorer(folder), RESTORATION_FORMATS, compare_estimates
    else:
        source, formats, compare = read_checkpoint(folder), FORMATS, compare_logits
    writer = importlib.import_module(f"crate_graph.export.{formats[format]}")
    with staged(output) as path:
        writer.write(source, path)
        difference, allowed = compare(source, writer.reload(path), writer.TOLERANCE, format)
        written = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = {str(file.relative_to(path) if path.is_dir() else file.name): file.stat().st_size for file in written}
    return {
        "format": format,
        "output": str(output),
        "architecture": source.architecture,
        "max_difference": difference,
        "allowed_difference": allowed,
        "files": files,
    }


def load_safetensors(path: Path | str) -> nn.Module:
    """The model, in eval mode, of a file that `export(..., "safetensors", path)` wrote."""
    from crate_graph.export.safetensors_file import load_safetensors as load

    return load(path)


def _refuse_for_restoration(folder: Path, format: str) -> None:
    if format not in RESTORATION_FORMATS:
        raise UserError(
            f"{folder}: a restoration network; --format {format} is for classification, use safetensors (which "
            f"crate-graph restore loads) or onnx"
        )


def _require_extra(format: str) -> None:
    for package in EXTRAS.get(format, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"export format '{format}' needs the package {package} ({error}); pip install 'crate-graph[{format}]'"
            ) from None
