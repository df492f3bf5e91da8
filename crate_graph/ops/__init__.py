"""Operators of the white-box layers: for each a plain reference, written as the equation, and the fast path."""

from crate_graph.ops.ista import ista, ista_reference
from crate_graph.ops.mssa import mssa, mssa_reference

__all__ = ["ista", "ista_reference", "mssa", "mssa_reference"]
