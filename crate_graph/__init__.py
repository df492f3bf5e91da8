"""White-box models, trained from one GPU to many nodes. Importing the package adds CRATE to timm's registry."""

from crate_graph.errors import UserError
from crate_graph.export.hf.registration import register_with_transformers
from crate_graph.models import create_model

__all__ = ["UserError", "create_model"]

register_with_transformers()
