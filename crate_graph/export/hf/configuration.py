"""Configuration of a CRATE model for transformers."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class CrateConfig(PreTrainedConfig):
    """A name in timm's registry and its keyword arguments; the number of classes is transformers' `num_labels`."""

    model_type = "crate_graph"

    def __init__(
        self, architecture: str = "crate_tiny_patch16_224", model_args: dict[str, Any] | None = None, **kwargs
    ):
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        super().__init__(**kwargs)
