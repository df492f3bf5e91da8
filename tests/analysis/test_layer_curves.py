"""tools/layer_curves.py: its table against measures taken directly, its figure, its refusal."""

import re
import shutil

import pytest
from layer_curves import main

from crate_graph.analysis.layers import activations
from crate_graph.analysis.panels import named
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
            for panel in named((*names[family], "nonzero_output")):
                values = [m for m in measured if m.name == panel.measure]
                ends = " | ".join(f"{m.mean:.3f} ± {m.std:.3f}" for m in (values[0], values[-1]))
                assert f"| fashion_mnist | {family} | {state} | {panel.title}, {panel.unit} | {ends} |" in printed
    drawn = figure.read_text()
    assert drawn.startswith("<?xml") and len(re.findall('id="axes_', drawn)) == 3


def test_a_restorer_is_refused(tmp_path, capsys):
    figure = tmp_path / "layers.svg"
    assert main(["ugtv_fast_demosaicking", "--figure", str(figure)]) == 2
    assert "name runs of CRATE or timm's ViT" in capsys.readouterr().err
    assert not figure.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--figure", "layers.png"], "name a file NAME.svg"),
        (["--figure", "nowhere/layers.svg"], "its folder is not there"),
        (["--samples", "0"], "'0' is no number of pictures"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_measured(runs, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([str(runs[0]), "--figure", "layers.svg", *words])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and said in err
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_taken_where_that_is_asked(runs, tmp_path, capsys):
    unfinished, figure = tmp_path / "unfinished", tmp_path / "layers.svg"
    shutil.copytree(runs[0], unfinished)
    (unfinished / "summary.json").unlink()
    assert main([str(unfinished), "--figure", str(figure)]) == 2
    assert "has not finished (step 2)" in capsys.readouterr().err and not figure.exists()
    assert main([str(unfinished), "--figure", str(figure), "--samples", "2", "--unfinished"]) == 0
    assert figure.exists()


def test_a_relative_is_not_taken_for_crate(runner, tmp_path, capsys):
    words = "model.name=crate_alpha_tiny_patch16_224", "name=alpha", "schedule.max_steps=1"
    run = runner.trained("alpha", *words).run_dir
    assert main([str(run), "--figure", str(tmp_path / "layers.svg")]) == 2
    assert "name runs of CRATE or timm's ViT" in capsys.readouterr().err
