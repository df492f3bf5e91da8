"""Networks: CRATE, and timm's as baselines. Importing this package adds CRATE to timm's registry."""

from crate_graph.models.factory import create_model, list_models
from crate_graph.models.published import load_published

__all__ = ["create_model", "list_models", "load_published"]
