"""What stands over a picture: its name, the class it is of, and the class that a classifier takes it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from crate_graph.analysis.layers import as_found
from crate_graph.analysis.pictures import Sample, View, batches
from crate_graph.analysis.subject import Subject

_BATCH = 8  # pictures at once


@dataclass(frozen=True)
class Caption:
    """Of one picture, as one model sees it."""

    key: str
    label: str = ""  # the class that the data set says; empty where nothing says it
    predicted: str = ""  # the likeliest class; empty where the model is no classifier
    probability: float = 0.0  # of that class
    wrong: bool = False  # of a label that the model could have given

    @property
    def lines(self) -> list[str]:
        said = [f"true: {self.label}"] if self.label else []
        return [self.key, *said, *([f"predicted: {self._likely}"] if self.predicted else [])]

    @property
    def _likely(self) -> str:
        return f"{self.predicted} ({self.probability:.0%})"


def captions_of(subject: Subject, samples: Sequence[Sample]) -> list[Caption]:
    """A caption for each sample; a classifier sees it as it is evaluated, whatever the size of the maps."""
    likeliest = _likeliest(subject, list(samples)) if subject.task == "classification" else [None] * len(samples)
    found = []
    for sample, likely in zip(samples, likeliest, strict=True):
        if likely is None:
            found.append(Caption(sample.key, sample.label))
            continue
        number, probability = likely
        predicted = subject.classes[number] if number < len(subject.classes) else f"class {number}"
        wrong = sample.label in subject.classes and sample.label != predicted
        found.append(Caption(sample.key, sample.label, predicted, probability, wrong))
    return found


def _likeliest(subject: Subject, samples: list[Sample]) -> list[tuple[int, float] | None]:
    """Number and probability of the likeliest class of each sample; None from a model without a head."""
    model = subject.model
    if isinstance(getattr(model, "head", None), nn.Identity):
        return [None] * len(samples)
    view, found = View(subject), []
    with as_found(model):
        for part in batches(samples, _BATCH):
            best = model(view.images(part)).float().softmax(dim=-1).max(dim=-1)
            found += zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return found


def explained(captions: Sequence[Caption]) -> str:
    """What a reader must know of the captions, as a sentence that goes on from another; empty where it is nothing."""
    if any(caption.wrong for caption in captions):
        return " A caption in red: the network takes the picture for another class than it is of."
    if any(caption.predicted and not caption.label for caption in captions):
        return " Predicted is the likeliest of the classes that the network knows; the picture may be of none of them."
    return ""
