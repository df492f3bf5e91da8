"""What the layers of a model do with pictures of its own evaluation set, and of that the last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crate_graph.analysis.layers import activations
from crate_graph.analysis.measured import Gathered, Measured
from crate_graph.analysis.pictures import Observation, Sample, View, observations_of, samples_of
from crate_graph.analysis.reconstruction import hidden_patches
from crate_graph.analysis.subject import Subject
from crate_graph.data.progress import progress

SIDE = 96  # pixels: of the pictures that a restoration network is shown, unless more are asked for


def probe(subject: Subject, samples: int) -> list[Measured]:
    """The `activations` on up to `samples` pictures, spread evenly over the split that the subject is evaluated on.

    A classifier sees them as it is evaluated, a masked autoencoder a part of each as in training, a restoration network
    their central SIDE x SIDE pixels. The pictures, and what is lost of them, are the same for every subject of the same
    data.

    Raises:
        UserError: a model whose layers have no measures; no data set.
    """
    if subject.task == "restoration":
        return over_pictures(subject.model, observations_of(subject, None, samples, SIDE))
    return activations(subject.model, *inputs_of(subject, samples_of(subject, None, samples)))


def inputs_of(subject: Subject, samples: list[Sample]) -> tuple[Tensor, ...]:
    """Images (B, C, H, W) as they are evaluated, and for a masked autoencoder which patches are hidden (B, N)."""
    images = View(subject).images(samples)
    if subject.task == "masked_autoencoding":
        return images, hidden_patches(subject, len(samples))
    return (images,)


def over_pictures(model: nn.Module, observations: list[Observation], **options: bool) -> list[Measured]:
    """The `activations` of a restoration network, one picture at a time: they need not be of one size."""
    gathered = Gathered()
    aware = getattr(model, "noise_aware", False)
    for each in progress(observations, len(observations), "measuring pictures"):
        for m in activations(model, each.observed, each.mask, each.sigma if aware else None, **options):
            gathered.add(m.name, m.layer, torch.tensor(m.mean), m.unit)
    return gathered.measured()


def last_layer(measured: Sequence[Measured]) -> dict[str, Measured]:
    """Of each measure the last one: of the last layer, of a graph network's last block and ADMM layer."""
    depth: dict[str, int] = {}  # a measure may be there for each ADMM layer, and for each CG step
    for each in measured:
        depth[each.name] = min(len(each.layer), depth.get(each.name, len(each.layer)))
    whole = [each for each in measured if len(each.layer) == depth[each.name]]
    return {each.name: each for each in sorted(whole, key=lambda m: m.layer)}
