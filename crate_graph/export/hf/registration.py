"""Make transformers' Auto classes know our models as soon as somebody imports transformers, and not before.

transformers takes most of a second to import, so `import crate_graph` must not. Each of its three Auto modules is
therefore watched: when Python has run it, our class is added to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType

from crate_graph.deferred import after_import

REMEDY = "pip install 'crate-graph[hf]' installs a version that can"


def _register_configuration(auto: ModuleType) -> None:
    from crate_graph.export.hf.configuration import CrateConfig

    auto.AutoConfig.register(CrateConfig.model_type, CrateConfig, exist_ok=True)


def _register_model(auto: ModuleType) -> None:
    from crate_graph.export.hf.configuration import CrateConfig
    from crate_graph.export.hf.modeling import CrateForImageClassification

    auto.AutoModelForImageClassification.register(CrateConfig, CrateForImageClassification, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from crate_graph.export.hf.configuration import CrateConfig
    from crate_graph.export.hf.processing import CrateImageProcessor

    backends = {"pil": CrateImageProcessor, "torchvision": CrateImageProcessor}  # one for both: it returns tensors
    auto.AutoImageProcessor.register(CrateConfig, image_processor_classes=backends, exist_ok=True)


_AFTER: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configuration,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.image_processing_auto": _register_processor,
}


def register_with_transformers() -> None:
    """Register now what transformers has loaded, and the rest when it is imported. Calling it again does nothing."""
    for name, register in _AFTER.items():
        after_import(name, partial(_try, register))


def _try(register: Callable[[ModuleType], None], auto: ModuleType) -> None:
    """Who imports transformers for something else must not fail because its version is not one that we know."""
    try:
        register(auto)
    except (ImportError, AttributeError, TypeError) as error:
        warnings.warn(f"crate_graph: transformers will not load CRATE ({error}); {REMEDY}", stacklevel=2)
