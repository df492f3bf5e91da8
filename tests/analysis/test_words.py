"""What reports say of their numbers: sentences hold what was measured, and claim no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure as Drawing

from crate_graph import create_model
from crate_graph.analysis.commands import _last_layer
from crate_graph.analysis.curves import Series, _share_scales
from crate_graph.analysis.graph_curves import learned_parameters
from crate_graph.analysis.header import evaluated, head_of, title_of
from crate_graph.analysis.layers import matrices, weights
from crate_graph.analysis.measured import Measured
from crate_graph.analysis.panels import RANK, Panel
from crate_graph.analysis.subject import Subject
from crate_graph.analysis.tokens import heads_at
from crate_graph.analysis.verdicts import verdict
from crate_graph.config.schema import EvalTransform, Recipe


def series(label, **measures):
    """Of each measure its means, layer by layer."""
    found = [
        Measured(name, (layer,), mean, None, "nats")
        for name, means in measures.items()
        for layer, mean in enumerate(means, start=1)
    ]
    return Series(label, "", found, [])


@pytest.mark.parametrize(
    ("trained", "random", "judged"),
    [
        ((100, 60), (80, 79), "So it falls by more after training than with random weights, as published."),
        ((100, 60), (80, 20), "with random weights it falls, too, and by as much or more."),
        ((60, 100), (80, 20), "after training it does not fall."),
    ],
)
def test_compression_is_judged_by_both_networks(trained, random, judged):
    said = verdict("rate_given_subspaces", [series("T", rc_output=trained), series("R", rc_output=random)])
    assert f"T: {trained[0]} to {trained[1]}; R: {random[0]} to {random[1]}. So " in said and said.endswith(judged)


def test_compression_of_a_vit_is_not_judged():
    crate = series("C", rc_output=(2, 1))
    assert verdict("rate_given_subspaces", [series("T"), series("R"), crate]) == ""
    both = verdict("rate_given_subspaces", [crate, series("R", rc_output=(2, 2)), series("V", rc_half_step=(3, 1))])
    assert "V" not in both and both.endswith("as published.")


def test_the_decoder_is_judged_in_its_last_layer():
    less = series("T", decoder_rc_half_step=(1, 63.65), decoder_rc_output=(9, 56.14))
    more = series("R", decoder_rc_half_step=(9, 5), decoder_rc_output=(1, 6))
    said = verdict("decoder_rates", [less, more])
    assert "T: 63.65 before, 56.14 after, so what is derived is not seen; R: 5 before, 6 after" in said
    assert said.endswith("so what is derived is seen.")
    assert verdict("decoder_rates", [series("T"), series("R")]) == ""


def test_an_effective_rank_comes_with_its_maximum_and_stays_inside_the_frame():
    model = create_model("crate_tiny_patch16_224", img_size=8, patch_size=4, depth=1, embed_dim=12, num_heads=2)
    said = verdict("dictionary", [Series("T", "", weights(model), matrices(model))])
    assert "at most 12 here" in said
    axes = Drawing().subplots(1, 1, squeeze=False)[0]
    axes[0].plot([1, 2], [101.0, 101.2])
    _share_scales(axes, [Panel("", "dictionary_effective_rank", RANK)])
    low, high = axes[0].get_ylim()
    assert low == 0 and high > 1.08 * 101.2


def test_momenta_without_effect_are_not_drawn_and_nothing_learned_is_no_figure():
    model = create_model("ugtv", depth=1, heads=2, features=3, layers=2, steps=3)
    own = Series("T", "#000000", weights(model), [])
    assert learned_parameters([own, own]) is None
    torch.nn.init.constant_(model.blocks[0].solver.beta, 0.7)
    figure = learned_parameters([Series("T", "#000000", weights(model), []), own])
    assert {row[4] for row in figure.rows if row[1] == "beta"} == {2, 3}
    assert {row[4] for row in figure.rows if row[1] == "alpha"} == {1, 2, 3}
    assert "“skip: how far a layer goes”" in figure.says and "threshold" not in figure.says


def test_the_table_has_no_spread_of_zero_and_a_reason_for_what_is_missing():
    def last(mean, std):
        return {"mean": mean, "std": std}

    random = {"gtv": last(0.0, 0.0), "system_residual": last(0.0, 0.0), "data_residual": last(0.0, 0.0)}
    result = {
        "last_layer": {"gtv": last(0.5, 0.25), "system_residual": last(0.5, None), "data_residual": last(0.0, 0.0)},
        "random_weights": {"start": "random", "last_layer": random, "nothing_to_lower": "With random weights: guide."},
        "compared": None,
    }
    head, *rows, reason = _last_layer(result)
    assert [row.split("  ")[1:] and " ".join(row.split()) for row in rows] == [
        "The objective's descent: GTV: the objective 0.5 ± 0.25 - per pixel",
        "The objective's descent: data residual 0 0 root mean square",
        "The objective's descent: what CG leaves over 0.5 - share",
    ]
    assert reason == "  -: with random weights: guide." and "compare" not in head
    result["random_weights"]["nothing_to_lower"] = ""
    result["compared"] = {"model": "other", "last_layer": {"glr": last(2.0, None)}}
    lines = [" ".join(line.split()) for line in _last_layer(result)]
    assert lines[0] == "in the last layer trained random other, to compare"
    assert lines[1:3] == [
        "The objective's descent: GLR: the objective - - 2 per pixel",
        "The objective's descent: GTV: the objective 0.5 ± 0.25 0 - per pixel",
    ]


@pytest.fixture(scope="module")
def vit():
    """A small ViT of a run of five steps, of which three are done."""
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, num_classes=3, depth=2, embed_dim=24, num_heads=3
    ).eval()
    data = {"dataset": "nowhere", "train_transform": {"size": 16}, "eval_transform": {"size": 16, "resize": None}}
    recipe = Recipe(name="toy", model={"name": "vit_tiny_patch16_224"}, data=data, schedule={"max_steps": 5})
    facts = {"recipe": "toy", "trained on": "toys", "step": 3, "loss": 1.5, "top1": 40.0}
    view = EvalTransform(size=16, resize=None)
    return Subject(
        "runs/v",
        "classification",
        "vit",
        model,
        model,
        "",
        facts,
        "toys",
        recipe,
        view=view,
        mean=[0.5] * 3,
        std=[1] * 3,
    )


def test_the_head_says_what_is_built_how_far_it_came_and_of_what_its_numbers_are(vit):
    head = head_of(vit)
    assert title_of(vit) == "What toy does, layer by layer"
    count = f"{sum(p.numel() for p in vit.model.parameters()):,}"
    built = {"layers": "2", "width": 24, "heads": 3, "patch": "4 x 4", "parameters": count}
    assert built.items() <= head.items() and head["step"] == "3 of 5" and head["right, %"] == 40.0
    unfinished = replace(vit, facts={"recipe": "toy", "trained on": "toys", "step": 3})
    assert head_of(unfinished)["step"] == "3 of 5, not evaluated" and evaluated([unfinished], None) == ""
    assert head_of(replace(vit, facts={**vit.facts, "step": 5}))["step"] == "5"
    assert evaluated([vit, vit], None).endswith("of the evaluation of toy (toys, split test).")
    assert evaluated([vit], "photos").endswith("(toys, split test), not of the pictures in photos.")
    other = replace(vit, facts={**vit.facts, "recipe": "toy2"})
    assert "of toy (toys, split test) and of that of toy2 (toys, split test)." in evaluated([vit, other], None)
    unnamed = replace(vit, facts={"recipe": "not recorded"})
    assert title_of(unnamed) == "What vit does, layer by layer" and "step" not in head_of(unnamed)


def test_maps_of_a_vit_are_of_its_keys(vit):
    assert heads_at(vit, 1, torch.zeros(1, 3, 16, 16)).features_in_words == "the keys of all heads"
