"""The head of a report: what network this is, how far it was trained, and of what its numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from crate_graph.analysis.panels import METRICS
from crate_graph.analysis.subject import Subject
from crate_graph.data import open_dataset
from crate_graph.data.remote.cache import ShardCache
from crate_graph.errors import UserError
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.graph_networks import UntrainedGraphNetwork
from crate_graph.redaction import redact

_UNNAMED = (None, "", "not recorded")


def title_of(subject: Subject) -> str:
    recipe = subject.facts.get("recipe")
    return f"What {subject.architecture if recipe in _UNNAMED else recipe} does, layer by layer"


def head_of(subject: Subject) -> dict[str, Any]:
    """Names and values, in the order in which they are read; its metrics are the last."""
    facts = dict(subject.facts)
    recorded = {name: facts.pop(name) for name in ("recipe", "weights", "trained on") if name in facts}
    step = {"step": _step(facts.pop("step"), subject)} if "step" in facts else {}
    metrics = METRICS[subject.task]
    found = {**recorded, "model": subject.architecture, **_built(subject.model)}
    return {**found, **step, **{metrics.get(name, name): value for name, value in facts.items()}}


def evaluated(subjects: Sequence[Subject], shown: str | None) -> str:
    """Of which pictures the metrics of the head are, and which mean; empty where it has none.

    shown: the folder of pictures that the report is measured on instead, if any.
    """
    known = [each for each in subjects if _metrics(each)]
    if not known:
        return ""
    ways = dict.fromkeys(
        f"{each.facts.get('recipe') or each.architecture} ({redact(each.facts.get('trained on') or each.dataset)}, "
        f"split {each.split})"
        for each in known
    )
    said = f"{_MEANS[known[0].task]} of the evaluation of {' and of that of '.join(ways)}"
    return f"{said}, not of the pictures in {redact(shown)}." if shown is not None else f"{said}."


_MEANS = {
    "classification": "Loss and shares above are of all pictures",
    "masked_autoencoding": "Loss and PSNR above are means over all pictures, PSNR that of the hidden pixels of each,",
    "restoration": "Loss, PSNR and SSIM above are means over all pictures, clipped and rounded to 8 bits unless they "
    "say otherwise,",
}


def _metrics(subject: Subject) -> set[str]:
    return METRICS[subject.task].keys() & subject.facts.keys()


def _step(step: int, subject: Subject) -> str:
    planned = _planned(subject)
    of = f" of {planned}" if planned is not None and step < planned else ""
    return f"{step}{of}{'' if _metrics(subject) else ', not evaluated'}"


def _planned(subject: Subject) -> int | None:
    """Steps that its recipe asks for; None where no recipe or no data set at hand tells."""
    if subject.recipe is None or "://" in subject.recipe.data.dataset:
        return None
    data, schedule = subject.recipe.data, subject.recipe.schedule
    with suppress(UserError):  # the pictures may be others, and the data set elsewhere
        dataset = open_dataset(data.dataset, data.root, ShardCache(data.cache, data.remote))
        steps = schedule.epochs * (dataset.split(data.train_split).samples // subject.recipe.batch.global_batch)
        return min(steps, schedule.max_steps or steps)
    return schedule.max_steps


def _built(model: nn.Module) -> dict[str, Any]:
    """Sizes, in words."""
    blocks = getattr(model, "blocks", None)
    found: dict[str, Any] = {}
    if hasattr(model, "patch_embed"):
        decoder = f" and {len(model.decoder_blocks)} of the decoder" if isinstance(model, CRATEMAE) else ""
        attention = next(m for m in blocks[0].modules() if hasattr(m, "num_heads"))
        found["layers"] = f"{len(blocks)}{decoder}"
        found |= {"width": model.embed_dim, "heads": attention.num_heads}
        found["patch"] = " x ".join(map(str, model.patch_embed.patch_size))
    elif blocks is not None and hasattr(blocks[0], "graphs"):
        found |= {"blocks": len(blocks), "graphs of a block": len(blocks[0].solver.mix)}
    if not isinstance(model, UntrainedGraphNetwork):
        found["parameters"] = f"{sum(p.numel() for p in model.parameters()):,}"
    return found
