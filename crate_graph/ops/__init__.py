"""Operators of the white-box layers: for each a plain reference, written as the equation, and the fast path."""

from crate_graph.ops.ista import ista, ista_reference
from crate_graph.ops.mssa import mssa, mssa_reference
from crate_graph.ops.overcomplete import overcomplete_ista, overcomplete_ista_reference
from crate_graph.ops.tssa import tssa, tssa_reference

__all__ = [
    "ista",
    "ista_reference",
    "mssa",
    "mssa_reference",
    "overcomplete_ista",
    "overcomplete_ista_reference",
    "tssa",
    "tssa_reference",
]
