"""Our evaluation transform as a transformers image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images

from crate_graph.config.schema import EvalTransform
from crate_graph.data.augment import build_eval_transform
from crate_graph.data.decode import MODES


class CrateImageProcessor(BaseImageProcessor):
    """Shorter side to `shortest_edge` (null: straight to `size`), central crop of `size`, normalisation.

    The number of channels is that of `image_mean`: 1 turns images grey, 3 turns them to RGB.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: dict[str, int] | None = None,
        shortest_edge: int | None = None,
        interpolation: str = "bicubic",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = dict(size or {"height": 224, "width": 224})
        self.shortest_edge = shortest_edge
        self.interpolation = interpolation
        self.image_mean = list(image_mean or (0.485, 0.456, 0.406))
        self.image_std = list(image_std or (0.229, 0.224, 0.225))

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """One image or a list (PIL, numpy or torch, uint8) to pixel_values (B, C, H, W)."""
        channels = len(self.image_mean)
        transform = build_eval_transform(
            EvalTransform(size=self.size["height"], resize=self.shortest_edge, interpolation=self.interpolation),
            mean=self.image_mean,
            std=self.image_std,
            channels=channels,
            num_classes=0,  # of no use to a fixed view
        )
        pictures = [_pil(image).convert(MODES[channels]) for image in make_flat_list_of_images(images)]
        pixels = np.stack([transform.view(picture, ()) for picture in pictures])  # (B, H, W, C)
        return BatchFeature({"pixel_values": transform.finish(pixels, ())}, tensor_type=return_tensors)


def _pil(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else to_pil_image(np.asarray(image))
