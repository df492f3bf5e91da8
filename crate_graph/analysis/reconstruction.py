"""What a masked autoencoder makes of pictures of which most patches are hidden (arXiv 2111.06377, 2404.02446)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from crate_graph.analysis.captions import captions_of
from crate_graph.analysis.figures import ACROSS, LETTERS, WIDTH, Figure, picture_sheet, show, show_captioned
from crate_graph.analysis.pictures import Sample, View
from crate_graph.analysis.subject import Subject
from crate_graph.tasks.masked_autoencoding import MaskedAutoencodingTask, random_masks

_COLUMNS = ("model", "picture", "PSNR of the hidden pixels", "PSNR of the mean of the visible pixels", "unit")


def hidden_patches(subject: Subject, count: int) -> Tensor:
    """Which patches of `count` pictures are hidden, as many as in training: (B, N), drawn by the picture's number."""
    patches = math.prod(subject.model.grid_size(subject.view.size, subject.view.size))
    return random_masks(torch.arange(count), patches, subject.mask_ratio)


def reconstruction_figure(subject: Subject, other: Subject | None, samples: list[Sample], count: int) -> Figure:
    """Original, what is shown to the network, and what it makes of it; judged on all samples, drawn for `count`."""
    models = [(subject, subject.architecture)] + ([] if other is None else [(other, f"{other.architecture}, compared")])
    judged = [_judge(each, samples) for each, _ in models]
    rows = [
        (label, sample.key, *psnr, "dB")
        for (_, label), found in zip(models, judged, strict=True)
        for sample, (_, *psnr) in zip(samples, found, strict=True)
    ]
    captions = captions_of(subject, samples[:count])
    shown = len(captions)
    columns = 2 + len(models)
    with picture_sheet([3] * shown, columns, width=WIDTH / ACROSS * columns) as made:
        for number, axes in enumerate(made.axes):
            hidden, _, original = judged[0][number][0]
            show_captioned(axes[0], original, [*captions[number].lines, "original"], letters=LETTERS)
            show(axes[1], hidden, "what it saw")
            for place, found in enumerate(judged):
                completed, psnr = found[number][0][1], found[number][1]
                name = "completed" if place == 0 else "to compare"
                show(axes[2 + place], completed, f"{name}: {psnr:.1f} dB")
    return Figure(
        "reconstruction",
        "Completion: pictures of which most is hidden",
        _says(subject, judged[0]),
        "arXiv 2404.02446, 2111.06377; PSNR over hidden pixels of 8 bits, for each picture",
        made.bytes,
        "png",
        _COLUMNS,
        rows,
    )


def _says(subject: Subject, found: list[tuple]) -> str:
    own, guess = (np.array([each[place] for each in found]) for place in (1, 2))
    spread = f" ± {own.std(ddof=1):.1f}" if len(own) > 1 else ""
    several = len(own) > 1
    number = f"these {len(own)} pictures" if several else "this picture"
    of_them = "the mean over the pictures" if several else "all hidden pixels together"
    words = (
        f"{subject.mask_ratio:.0%} of the patches are hidden (grey), and the network paints what it expects there. On "
        f"the hidden pixels of {number} it has {own.mean():.1f}{spread} dB, {of_them}; the mean "
        f"colour of what is visible, the plainest guess, has {guess.mean():.1f}. (A PSNR at the top of the page is of "
        f"the whole evaluation instead.) More is better, and 6 dB more is half the error."
    )
    if subject.normalize_patches:
        words += (
            " It was taught patches without their mean and contrast; here both are taken from the original, so these "
            "numbers are not those of a completion."
        )
    return words


@torch.no_grad()
def _judge(subject: Subject, samples: list[Sample]) -> list[tuple[list[np.ndarray], float, float]]:
    """For each sample: hidden, completed and original (H, W, C), and the PSNR of it and of the plainest guess."""
    task = MaskedAutoencodingTask(subject.mask_ratio, subject.normalize_patches, subject.mean, subject.std)
    found = []
    for number, image in enumerate(View(subject).images(samples)):  # one at a time: sums are then of one picture
        _, psnr, guess, _ = task.measure(subject.model, image[None], torch.tensor([number]), torch.ones(1)).tolist()
        panels = task.take_gallery()[0].permute(1, 2, 0).numpy()  # (H, 3 W, C)
        found.append((np.split(panels, 3, axis=1), psnr, guess))
    return found
