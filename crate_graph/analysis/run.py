"""The verb `analyze`: what a trained model's layers do, as a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crate_graph.analysis.attention import attention_figure, pca_figure
from crate_graph.analysis.captions import captions_of
from crate_graph.analysis.curves import Series, curve_figures, series_of
from crate_graph.analysis.figures import Figure, check_drawing
from crate_graph.analysis.graph_curves import nothing_to_lower
from crate_graph.analysis.graphs import comparison, graph_figures, is_graph_network, restorer_series
from crate_graph.analysis.header import evaluated, head_of, title_of
from crate_graph.analysis.layers import MEASURED, has_measures, undefined
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import GRAPH_WORDS, MISSING, WORDS
from crate_graph.analysis.pictures import Sample, View, observations_of, samples_of
from crate_graph.analysis.probe import SIDE, last_layer
from crate_graph.analysis.reconstruction import reconstruction_figure
from crate_graph.analysis.report import REPORT, Report, check_output, write_report
from crate_graph.analysis.segmentation import iou_figure, judge, segmentation_figure
from crate_graph.analysis.subject import Subject, open_subject
from crate_graph.analysis.tokens import choose_layer, heads_at, resized
from crate_graph.errors import UserError
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.redaction import redact
from crate_graph.tasks.build import check_degradation, describe

Shown = tuple[list[Figure], list[Series], str]  # the last in words: on what it was measured
MOST_SHOWN = 64  # pictures: of more, a figure would be taller than it can be drawn


@dataclass(frozen=True)
class Request:
    """What is asked beside the model and the folder; see `crate-graph analyze --help`."""

    images: str | None = None
    samples: int = 32
    show: int = 4
    layer: int | None = None
    size: int | None = None
    patch: int | None = None
    compare: str | None = None
    force: bool = False


def analyze(name: str, output: Path, request: Request) -> dict[str, Any]:
    """Write the report of `name` into the folder `output`; where it is, and the numbers of the last layer.

    Raises:
        UserError: see `open_subject`, `samples_of` and `check_output`; a request that the model cannot meet.
    """
    if request.show > MOST_SHOWN:
        raise UserError(f"--show {request.show}: maps are drawn of {MOST_SHOWN} pictures at most; choose fewer")
    check_drawing()
    check_output(output, request.force)
    subject = open_subject(name)
    other = None if request.compare is None else _other(subject, request.compare)
    show = _restorer if subject.task == "restoration" else _transformer
    figures, series, about = show(subject, other, request)
    report = Report(
        title=title_of(subject),
        about=about,
        facts={"analysed": redact(name), **head_of(subject)},
        of=evaluated([subject] if other is None else [subject, other], request.images),
        compared={} if other is None else {"compared with": redact(other.name), **head_of(other)},
        notes=[*subject.notes, *_missing(subject, other)],
        figures=figures,
        words=_words(subject, other),
        command=redact(_command(name, output, request)),
    )
    files = write_report(report, output, force=request.force)
    guided = isinstance(subject.model, UGTVFast)
    random = {"start": subject.start, "last_layer": _last_layer(series[1].measured)}
    return {
        "report": str(output / REPORT),
        "model": subject.architecture,
        "figures": {f.name: [str(path) for path in files if path.stem == f.name] for f in figures},
        "last_layer": _last_layer(series[0].measured),
        "random_weights": {**random, "nothing_to_lower": nothing_to_lower(series, guided)},
        "compared": None
        if other is None
        else {"model": other.architecture, "name": other.name, "last_layer": _last_layer(series[2].measured)},
    }


def _words(subject: Subject, other: Subject | None) -> dict[str, str]:
    words = GRAPH_WORDS if is_graph_network(subject.model) else WORDS
    if other is None:
        return words
    return {**words, "orange": f"in curves, the second model, {other.architecture} of {redact(other.name)}."}


def _place(subject: Subject, request: Request) -> str:
    """Where the pictures are from."""
    if request.images is not None:
        return redact(request.images)
    return f"{redact(subject.dataset)}, split {subject.split}"


def _pictures(items: Sequence) -> str:
    return f"{len(items)} picture{'s' * (len(items) > 1)}"


def _missing(subject: Subject, other: Subject | None) -> list[str]:
    """The measures that one of the models has not, and why."""
    models = [each for each in (subject, other) if each is not None]
    return [
        f"Not there for {each.architecture}: {', '.join(MISSING[name] for name in measures.split(', '))}; {why}."
        for each in models
        for measures, why in undefined(each.model).items()
    ]


def _other(subject: Subject, name: str) -> Subject:
    """What `subject` is compared with."""
    other = open_subject(name)
    if other.task != subject.task:
        raise UserError(f"--compare {name}: is for {other.task}, {subject.name} for {subject.task}; name one of those")
    if subject.task == "restoration":
        check_degradation(other.degradation, subject.degradation, f"--compare {name}")
        if other.color != subject.color or is_graph_network(other.model) != is_graph_network(subject.model):
            raise UserError(
                f"--compare {name}: {other.architecture} for {other.color} beside {subject.architecture} for "
                f"{subject.color} have no measures in common; name a network of the same family and colours"
            )
    elif len(other.mean) != len(subject.mean):
        raise UserError(
            f"--compare {name}: takes pictures of {len(other.mean)} channels, {subject.name} of {len(subject.mean)}; "
            f"name one that takes the same pictures"
        )
    return other


def _transformer(subject: Subject, other: Subject | None, request: Request) -> Shown:
    models = [each for each in (subject, other) if each is not None]
    for each in models:
        if not has_measures(each.model):
            raise UserError(f"{each.name}: {each.architecture} has no measures; they are defined for {MEASURED}")
    layers = [choose_layer(each, request.layer) for each in models]
    views = [View(each, _side(each, request)) for each in models]
    for each, view in zip(models, views, strict=True):
        resized(each, view.config.size)
    samples = samples_of(subject, request.images, request.samples)
    _say(f"measuring the layers on {_pictures(samples)}")
    series = series_of(subject, samples, other)
    figures, judged = [], {}
    if subject.task == "masked_autoencoding":
        figures.append(reconstruction_figure(subject, other, samples, request.show))
    for number, (each, layer, view) in enumerate(zip(models, layers, views, strict=True)):
        _say(f"drawing maps of {_pictures(samples[: request.show])}, layer {layer} of {each.architecture}")
        drawn, found = _maps(each, layer, view, samples, request.show)
        if number:
            drawn = [
                replace(f, name=f"compared_{f.name}", title=f"To compare, {each.architecture}: {f.title}")
                for f in drawn
            ]
        figures += drawn
        if found:
            judged[each.architecture if not number else f"{each.architecture}, to compare"] = found
    if judged:
        figures.append(iou_figure(judged, [sample.key for sample in samples]))
    _say("drawing curves")
    figures += curve_figures(series)  # pictures first: they say most to whoever has not read the papers
    size = f"{subject.view.size} x {subject.view.size} pixels"
    seen = f"each scaled to {size}" if subject.view.resize is None else f"of each the central square, at {size}"
    about = (
        f"Measured on {_pictures(samples)} of {_place(subject, request)} ({seen}), layer by layer, beside the same "
        f"network {subject.start}."
    )
    if views[0].config.size != subject.view.size:
        about += f" Maps are of {views[0].config.size} x {views[0].config.size} pixels."
    if request.layer is None:
        about += different_layers(models, layers)
    if subject.task == "masked_autoencoding":
        about += (
            f" For the curves {subject.mask_ratio:.0%} of each picture is hidden, as in training; maps are of the "
            f"encoder, which sees whole pictures there."
        )
    return figures, series, about


def different_layers(models: Sequence[Subject], layers: Sequence[int]) -> str:
    """Why maps of two models are not of the same layer, as a sentence that goes on from another; else empty."""
    if len(set(layers)) == 1:
        return ""
    shown = [
        f"layer {layer} of {len(each.model.blocks)} of {each.architecture}"
        for each, layer in zip(models, layers, strict=True)
    ]
    return (
        f" Maps are of {' and of '.join(shown)}: published maps are of the last layer but one of CRATE and its "
        f"relatives, and of the last of a ViT and ToST; --layer chooses one for both."
    )


def _say(text: str) -> None:
    """What is done now, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def _maps(subject: Subject, layer: int, view: View, samples: list[Sample], count: int):
    """Figures of the first `count` samples, and what `segmentation.judge` says of all that have a mask."""
    shown = samples[:count]
    seen, captions = [view.seen(sample) for sample in shown], captions_of(subject, shown)
    heads = heads_at(subject, layer, view.images(shown))
    where = f"layer {layer} of {len(subject.model.blocks)}"
    given = [None if sample.mask is None else view.mask(sample) for sample in shown]
    figures = [
        attention_figure(seen, captions, heads, where),
        pca_figure(seen, captions, heads, where),
        segmentation_figure(seen, captions, heads, where, given),
    ]
    masked = {number: view.mask(sample) for number, sample in enumerate(samples) if sample.mask is not None}
    if not masked:
        return figures, []
    heads = heads_at(subject, layer, view.images([samples[number] for number in masked]))
    numbers = list(masked)
    judged = judge(heads, dict(enumerate(masked.values())))
    return figures, [(numbers[place], way, iou) for place, way, iou in judged]


def _side(subject: Subject, request: Request) -> int:
    """Pixels of a picture in maps."""
    if request.patch is None:
        return request.size or subject.view.size
    own = subject.model.patch_embed.patch_size[0]
    if subject.view.size % request.patch:
        raise UserError(
            f"--patch {request.patch}: pictures of {subject.view.size} pixels are not divisible by it; choose a divisor"
        )
    return subject.view.size // request.patch * own


def _restorer(subject: Subject, other: Subject | None, request: Request) -> Shown:
    for option in ("layer", "patch"):
        if (value := getattr(request, option)) is not None:
            raise UserError(f"--{option} {value}: is for maps of tokens, {subject.name} restores; leave it out")
    side = request.size or SIDE
    observations = observations_of(subject, request.images, request.samples, side)
    _say(f"measuring the layers on {_pictures(observations)}")
    series = restorer_series(subject, observations, other)
    about = (
        f"Measured on {_pictures(observations)} of {_place(subject, request)} ({describe(subject.degradation)}; the "
        f"central {side} x {side} pixels), beside the same network {subject.start}."
    )
    _say("drawing")
    if is_graph_network(subject.model):
        figures = graph_figures(subject, other, series, observations, request.show)
    else:
        figures = [comparison(subject, other, observations[: request.show]), *curve_figures(series)]
    return figures, series, about


def _last_layer(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    return {
        name: {"layer": list(m.layer), "mean": m.mean, "std": m.std, "unit": m.unit, "over": m.over}
        for name, m in last_layer(measured).items()
    }


def _command(name: str, output: Path, request: Request) -> str:
    words = ["crate-graph", "analyze", name, "--output", str(output)]
    standard = Request()
    for key in ("images", "samples", "show", "layer", "size", "patch", "compare"):
        if (value := getattr(request, key)) != getattr(standard, key):
            words += [f"--{key}", str(value)]
    return shlex.join(words)
