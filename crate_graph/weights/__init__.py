"""Trained restoration networks that ship with the package: a folder each, with weights, description and card."""

from crate_graph.weights.names import list_weights, load_restorer

__all__ = ["list_weights", "load_restorer"]
