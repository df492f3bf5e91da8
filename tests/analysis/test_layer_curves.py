"""tools/layer_curves.py: its table against measures taken directly, its figure, its refusal."""

import re

import pytest
from layer_curves import main

from crate_graph.analysis.layers import activations
from crate_graph.analysis.pictures import View, samples_of
from crate_graph.analysis.subject import open_subject

VIT = ("model.name=vit_tiny_patch16_224", "name=vit")


@pytest.fixture(scope="module")
def runs(runner):
    """A CRATE and a ViT of timm."""
    return [
        runner.trained(name, "schedule.max_steps=2", *words).run_dir for name, words in (("crate", ()), ("vit", VIT))
    ]


def test_first_and_last_layer_before_and_after_training(runs, tmp_path, capsys):
    figure = tmp_path / "layers.svg"
    assert main([*map(str, runs), "--samples", "5", "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    names = {"CRATE": ["rc_half_step"], "ViT": [f"rc_half_step_{part}" for part in ("query", "key", "value")]}
    for run, family in zip(runs, names, strict=True):
        subject = open_subject(str(run))
        images = View(subject).images(samples_of(subject, None, 5))
        for state, model in (("initial", subject.initial), ("trained", subject.model)):
            measured = activations(model, images)
            for name in (*names[family], "nonzero_output"):
                values = [m for m in measured if m.name == name]
                ends = " | ".join(f"{m.mean:.3f} ± {m.std:.3f}" for m in (values[0], values[-1]))
                assert f"| fashion_mnist | {family} | {state} | `{name}` | {ends} |" in printed
    drawn = figure.read_text()
    assert drawn.startswith("<?xml") and len(re.findall('id="axes_', drawn)) == 3


def test_a_restorer_is_refused(tmp_path, capsys):
    figure = tmp_path / "layers.svg"
    assert main(["ugtv_fast_demosaicking", "--figure", str(figure)]) == 2
    assert "name runs of CRATE or timm's ViT" in capsys.readouterr().err
    assert not figure.exists()
