"""A folder for transformers: AutoModelForImageClassification and AutoImageProcessor load it.

CRATE is written with our own classes (crate_graph/export/hf), which `import crate_graph` registers. A plain timm model
of colour images is written as timm's own folder, which transformers reads by itself: its user needs no crate_graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from crate_graph.export import timm_folder
from crate_graph.export.hf.configuration import CrateConfig
from crate_graph.export.hf.modeling import CrateForImageClassification
from crate_graph.export.hf.processing import CrateImageProcessor
from crate_graph.export.model_card import write_model_card
from crate_graph.export.source import Source

TOLERANCE = 1e-5


def write(source: Source, path: Path) -> None:
    if transformers_reads_it(source):
        timm_folder.write_model(source, path)
        write_model_card(source, path, "transformers", needs_crate_graph=False)
        return
    config = CrateConfig(
        architecture=source.architecture,
        model_args=source.model_args,
        id2label=dict(enumerate(source.classes)),
        label2id={name: number for number, name in enumerate(source.classes)},
    )
    model = CrateForImageClassification(config)
    model.model.load_state_dict(source.weights())
    with _quiet():
        model.save_pretrained(path)
    processor_of(source).save_pretrained(path)
    write_model_card(source, path, "transformers", needs_crate_graph=True)


def reload(path: Path) -> Callable[[Tensor], Tensor]:
    with _quiet():
        model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    return lambda images: model(pixel_values=images).logits


def transformers_reads_it(source: Source) -> bool:
    """timm's own architectures, for three channels: transformers' wrapper of timm does not convert to grey."""
    return source.is_timms_own and len(source.mean) == 3


def processor_of(source: Source) -> CrateImageProcessor:
    side = source.transform.size
    return CrateImageProcessor(
        size={"height": side, "width": side},
        shortest_edge=source.transform.resize,
        interpolation=source.transform.interpolation,
        image_mean=list(source.mean),
        image_std=list(source.std),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for the result: transformers draws progress bars, and the DeepSpeed it imports logs there."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
