"""White-box models, trained from one GPU to many nodes. Importing the package adds CRATE to timm's registry."""

from typing import TYPE_CHECKING

from crate_graph.deferred import after_import, on_demand
from crate_graph.errors import UserError
from crate_graph.export.hf.registration import register_with_transformers

if TYPE_CHECKING:
    from crate_graph.models import create_model

__all__ = ["UserError", "create_model"]
__getattr__ = on_demand(__name__, {"create_model": "models", "models": "models", "ops": "ops"})


def _register_with_timm(_) -> None:
    import crate_graph.models.sizes  # noqa: F401


after_import("timm", _register_with_timm)
register_with_transformers()
