"""Portable checkpoints: written atomically, verified by checksum, loadable into any engine and world size."""

from crate_graph.checkpoint.model import load_model
from crate_graph.checkpoint.store import CheckpointStore

__all__ = ["CheckpointStore", "load_model"]
