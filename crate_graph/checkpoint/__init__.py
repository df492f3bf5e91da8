"""Portable checkpoints: written atomically, verified by checksum, loadable into any engine and world size."""

from typing import TYPE_CHECKING

from crate_graph.checkpoint.store import CheckpointStore
from crate_graph.deferred import on_demand

if TYPE_CHECKING:
    from crate_graph.checkpoint.model import load_model

__all__ = ["CheckpointStore", "load_model"]
__getattr__ = on_demand(__name__, {"load_model": "model"})  # it loads PyTorch
